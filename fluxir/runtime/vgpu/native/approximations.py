"""Approximate functions in LLVM IR: the same exact value in f64, moved by the same hash of operands and seed, as in
`instructions/special.py`.

What numpy computes by a library function (2**x, logarithm, sine, cosine, hyperbolic tangent) is computed by the very loop inside
of numpy's function, so the bits are the same.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from ..isa import Form
from ..rounding import F32, Format
from ..values import split
from .context import field
from .floats import finish, unary
from .lanewise import Spelling, spells
from .text import LANES, Text, splat, vector

__all__ = ["FUNCTIONS", "inner_loop", "loops_are_known"]

FUNCTIONS = ("exp2", "log2", "sin", "cos", "tanh")
_D, _L, _F = vector("double"), vector("i64"), vector("float")


@functools.cache
def inner_loop(name: str) -> tuple[int, int]:
    """(address, data) of the loop over f64 inside of a numpy function of one argument, as in numpy's `PyUFuncObject`: after the
    object's head (16 bytes) nin, nout, nargs and identity (4 bytes each), then the lists of loops and of their data, then the
    number of types."""
    u = getattr(np, name)
    base, i = id(u), u.types.index("d->d")
    loops, data = (ctypes.c_void_p.from_address(base + at).value or 0 for at in (32, 40))
    address = ctypes.c_void_p.from_address(loops + 8 * i).value or 0
    return address, (ctypes.c_void_p.from_address(data + 8 * i).value or 0) if data else 0


@functools.cache
def loops_are_known() -> bool:
    """Whether this numpy keeps its functions as `inner_loop` reads them: looked at first, then tried."""
    for name in FUNCTIONS:
        u = getattr(np, name)
        fields = [ctypes.c_int.from_address(id(u) + at).value for at in (16, 20, 24, 48)]
        if fields != [u.nin, u.nout, u.nargs, u.ntypes]:
            return False
        values = np.linspace(0.25, 3.0, LANES)
        want = u(values)
        arguments = (ctypes.c_void_p * 2)(values.ctypes.data, values.ctypes.data)
        count, steps = (ctypes.c_int64 * 1)(LANES), (ctypes.c_int64 * 2)(8, 8)
        address, data = inner_loop(name)
        ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)(arguments, count, steps, data)
        if not np.array_equal(values, want):
            return False
    return True


def _hex(x: float) -> str:
    return "0x" + np.float64(x).tobytes()[::-1].hex().upper()


def _const(x: float) -> str:
    return splat("double", _hex(x))


def _library(f: Text, name: str, a: str) -> str:
    """A numpy function of all lanes."""
    buffer, arguments, size = f.slot("[32 x double]", 64), f.slot("[2 x ptr]", 8), f.slot("[3 x i64]", 8)
    f.store(_D, a, buffer, 64)
    f.store("ptr", buffer, arguments)
    f.store("ptr", buffer, f.at(arguments, 8))
    for i, n in enumerate((LANES, 8, 8)):
        f.store("i64", str(n), f.at(size, 8 * i))
    function, data = field(f, name, "ptr"), field(f, f"{name}.data", "ptr")
    f.do(f"call void {function}(ptr {arguments}, ptr {size}, ptr {f.at(size, 8)}, ptr {data})")
    return f.load(_D, buffer, 64)


def _noise(f: Text, operands: tuple[str, ...]) -> str:
    """A number in (-1, 1) for each lane, by the bits of its operands (f32) and the seed."""
    h = f.spread("i64", field(f, "seed"))
    for x in operands:
        bits = f.cast("zext", vector("i32"), f.cast("bitcast", _F, x, vector("i32")), _L)
        h = f.op("mul", _L, f.op("xor", _L, h, bits), splat("i64", 0xBF58476D1CE4E5B9 - (1 << 64)))
        h = f.op("xor", _L, h, f.op("lshr", _L, h, splat("i64", 29)))
    h = f.op("mul", _L, h, splat("i64", 0x94D049BB133111EB - (1 << 64)))
    n = f.cast("uitofp", _L, f.op("lshr", _L, h, splat("i64", 11)), _D)
    n = f.op("fsub", _D, f.op("fmul", _D, n, _const(2.0**-52)), _const(1 - 2.0**-53))
    return f.op("fmul", _D, n, f.spread("double", field(f, "noise", "double")))


def _spacing(f: Text, x: str, to: Format) -> str:
    bits = f.op("and", _L, f.cast("bitcast", _D, x, _L), splat("i64", 0x7FF << 52))
    least = splat("i64", (to.emin + 1023) << 52)
    exponent = f.call(_L, "llvm.smax.v32i64", (_L, bits), (_L, least))
    return f.cast("bitcast", _L, f.op("sub", _L, exponent, splat("i64", (to.precision - 1) << 52)), _D)


def _rounded(f: Text, x: str) -> str:
    """To a number of f32, still as f64."""
    return f.cast("fpext", _F, f.cast("fptrunc", _D, x, _F), _D)


def _finite(f: Text, x: str) -> str:
    return f(f"fcmp olt {_D} {unary(f, 'fabs', _D, x)}, {splat('double', '0x7FF0000000000000')}")


def _moved(f: Text, x: str, by: str) -> str:
    """x + by where x is finite and not zero."""
    moves = f.op("and", "<32 x i1>", _finite(f, x), f(f"fcmp une {_D} {x}, zeroinitializer"))
    return _choose(f, moves, f.op("fadd", _D, x, by), x)


_Move = Callable[[Text, str, tuple[str, ...], str], str]  # (text, value, operands, first operand in f64)


def _ulps(bound: float) -> _Move:
    def move(f: Text, x: str, operands: tuple[str, ...], _: str) -> str:
        step = _spacing(f, x, F32)
        by = f.op("fmul", _D, f.op("fmul", _D, _noise(f, operands), _const(bound - 0.5)), step)
        y = _rounded(f, _moved(f, x, by))
        error = unary(f, "fabs", _D, f.op("fsub", _D, y, x))
        far = f(f"fcmp ogt {_D} {error}, {f.op('fmul', _D, _const(bound), step)}")
        return _choose(f, far, _rounded(f, x), y)

    return move


def _relative(bound: float) -> _Move:
    def move(f: Text, x: str, operands: tuple[str, ...], _: str) -> str:
        part = f.op("fmul", _D, _noise(f, operands), _const(max(bound - 2.0**-F32.precision, 0.0)))
        return _moved(f, x, f.op("fmul", _D, part, unary(f, "fabs", _D, x)))

    return move


def _absolute(f: Text, x: str, bound: str, operands: tuple[str, ...]) -> str:
    """`bound`: a vector of f64."""
    part = f.op("fsub", _D, bound, _const(2.0**-F32.precision))
    return _moved(f, x, f.op("fmul", _D, _noise(f, operands), part))


def _exact_where_possible(move: _Move) -> _Move:
    def kept(f: Text, x: str, operands: tuple[str, ...], a: str) -> str:
        exact = f(f"fcmp oeq {_D} {_rounded(f, x)}, {x}")
        return _choose(f, exact, x, move(f, x, operands, a))

    return kept


def _choose(f: Text, condition: str, a: str, b: str) -> str:
    return f(f"select <32 x i1> {condition}, {_D} {a}, {_D} {b}")


def _approximate(form: Form, exact: Callable[..., str], move: _Move) -> Spelling | None:
    kind, count = split(form.type)
    if kind != "f32" or count != 1:
        return None

    def compute(f: Text, _: str, *operands: str) -> str:
        wide = [f.cast("fpext", _F, x, _D) for x in operands]
        return f.cast("fptrunc", _D, move(f, exact(f, *wide), operands, wide[0]), _F)

    return finish(form, compute)


def _inverse_root(f: Text, a: str) -> str:
    return f.op("fdiv", _D, splat("double", "1.0"), unary(f, "sqrt", _D, a))


@spells("rcp", "sqrt", "rsqrt", "div")
def _algebraic(form: Form) -> Spelling | None:
    if form.type != "f32":
        return None
    name = form.instruction.name
    if name == "div" and (form.has("full") or form.has("approx")):
        return _approximate(form, _quotient if form.has("approx") else _plain_quotient, _ulps(2))
    if not form.has("approx"):
        return None
    if name == "rcp":
        return _approximate(
            form, lambda f, a: f.op("fdiv", _D, splat("double", "1.0"), a), _exact_where_possible(_ulps(1))
        )
    if name == "sqrt":
        return _approximate(form, lambda f, a: unary(f, "sqrt", _D, a), _relative(2.0**-23))
    return _approximate(form, _inverse_root, _exact_where_possible(_relative(2.0**-22.9))) if name == "rsqrt" else None


def _plain_quotient(f: Text, a: str, b: str) -> str:
    return f.op("fdiv", _D, a, b)


def _quotient(f: Text, a: str, b: str) -> str:
    """a / b; zero for a |b| above 2**126 that is finite."""
    size = unary(f, "fabs", _D, b)
    above = f(f"fcmp ogt {_D} {size}, {_const(2.0**126)}")
    finite = f(f"fcmp olt {_D} {size}, {splat('double', '0x7FF0000000000000')}")
    huge = f.op("and", "<32 x i1>", above, finite)
    zero = f.call(_D, "llvm.copysign.v32f64", (_D, "zeroinitializer"), (_D, b))
    return _choose(f, huge, f.op("fmul", _D, a, zero), f.op("fdiv", _D, a, b))


@spells("ex2")
def _power(form: Form) -> Spelling | None:
    if not loops_are_known():
        return None
    return _approximate(form, lambda f, a: _library(f, "exp2", a), _exact_where_possible(_ulps(2)))


@spells("lg2")
def _logarithm(form: Form) -> Spelling | None:
    if not loops_are_known():
        return None
    far = _relative(2.0**-22)

    def exact(f: Text, a: str) -> str:
        none = f(f"fcmp oeq {_D} {a}, zeroinitializer")  # -0 is 0 here
        return _library(f, "log2", _choose(f, none, "zeroinitializer", a))

    def move(f: Text, x: str, operands: tuple[str, ...], a: str) -> str:
        near = f(f"fcmp olt {_D} {unary(f, 'fabs', _D, x)}, {splat('double', '1.0')}")
        return _choose(f, near, _absolute(f, x, _const(2.0**-22), operands), far(f, x, operands, a))

    return _approximate(form, exact, _exact_where_possible(move))


@spells("sin", "cos")
def _wave(form: Form) -> Spelling | None:
    if not loops_are_known():
        return None

    def move(f: Text, x: str, operands: tuple[str, ...], a: str) -> str:
        near = f(f"fcmp ole {_D} {unary(f, 'fabs', _D, a)}, {_const(2 * np.pi)}")
        y = _absolute(f, x, _choose(f, near, _const(2.0**-20.5), _const(2.0**-14.7)), operands)
        return _choose(f, f(f"fcmp oeq {_D} {a}, zeroinitializer"), x, _clipped(f, y))

    return _approximate(form, lambda f, a: _library(f, form.instruction.name, a), move)


def _clipped(f: Text, y: str) -> str:
    """To [-1, 1]; NaN stays."""
    one, minus = splat("double", "1.0"), splat("double", "-1.0")
    y = _choose(f, f(f"fcmp olt {_D} {y}, {minus}"), minus, y)
    return _choose(f, f(f"fcmp ogt {_D} {y}, {one}"), one, y)


@spells("tanh")
def _hyperbolic(form: Form) -> Spelling | None:
    if not loops_are_known():
        return None
    error = _relative(2.0**-11)

    def move(f: Text, x: str, operands: tuple[str, ...], a: str) -> str:
        y = _clipped(f, error(f, x, operands, a))
        size = unary(f, "fabs", _D, a)
        infinite = f(f"fcmp oeq {_D} {size}, {splat('double', '0x7FF0000000000000')}")
        tiny = f(f"fcmp olt {_D} {size}, {_const(2.0**-126)}")
        return _choose(f, f.op("or", "<32 x i1>", infinite, tiny), x, y)

    return _approximate(form, lambda f, a: _library(f, "tanh", a), move)
