"""Two builders that give recipes a meaning without the rest of the compiler, and oracles to compare with.

`NumpyBuilder` executes each op at once on numpy arrays: the plain meaning. `LlvmBuilder` writes LLVM IR, so that a
recipe becomes a vectorised loop with true fused multiply-adds: what the tests run on millions of inputs. An oracle is
written against the same builder in the next wider type, with the C library's functions.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
import numpy as np

NUMPY: dict[str, Any] = {
    "f32": np.float32,
    "f64": np.float64,
    "i32": np.int32,
    "i64": np.int64,
    "u32": np.uint32,
    "u64": np.uint64,
    "bool": np.bool_,
}
LLVM = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "u32": "i32", "u64": "i64", "bool": "i1"}
# "wide" is the C library's long double: it exists in oracles only
LLVM["wide"], _WIDE_SUFFIX = {63: ("x86_fp80", "f80"), 112: ("fp128", "f128")}[np.finfo(np.longdouble).nmant]
NUMPY["wide"] = np.longdouble
FLOATS = ("f32", "f64", "wide")  # by precision
ORACLE_OF = {"f32": "f64", "f64": "wide"}


@functools.cache
def _type(name: str) -> Any:
    return SimpleNamespace(dtype=SimpleNamespace(name=name))


# ---- numpy


@dataclass
class Array:
    """A numpy array with the attribute path that recipes read."""

    data: Any

    @property
    def type(self) -> Any:
        return _type(next(n for n, t in NUMPY.items() if self.data.dtype == np.dtype(t)))


def _libm_fma() -> dict[Any, Any]:
    libm = ctypes.CDLL(None)
    table = {}
    for dtype, name, c_type in ((np.float32, "fmaf", ctypes.c_float), (np.float64, "fma", ctypes.c_double)):
        function = getattr(libm, name)
        function.restype = c_type
        function.argtypes = [c_type] * 3
        table[np.dtype(dtype)] = np.frompyfunc(function, 3, 1)
    return table


class NumpyBuilder:
    """Executes each op on arrays; `fma` is libm's, exactly fused."""

    _binary = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
        "logical_and": np.logical_and,
        "logical_or": np.logical_or,
        "bit_and": np.bitwise_and,
        "bit_or": np.bitwise_or,
        "bit_xor": np.bitwise_xor,
        "shift_left": np.left_shift,
        "shift_right": np.right_shift,
    }
    _unary = {
        "neg": np.negative,
        "abs": np.abs,
        "sqrt": np.sqrt,
        "floor": np.floor,
        "ceil": np.ceil,
        "round": np.rint,
        "trunc": np.trunc,
        "logical_not": np.logical_not,
        "bit_not": np.invert,
        "isnan": np.isnan,
    }

    def __init__(self) -> None:
        self._fma = _libm_fma()

    def const(self, value: Any, like: Array) -> Array:
        return Array(np.asarray(value, dtype=like.data.dtype))

    def _lift(self, operands: Sequence[Any]) -> list[Any]:
        like = next(o for o in operands if isinstance(o, Array))
        return [(o if isinstance(o, Array) else self.const(o, like)).data for o in operands]

    def fma(self, x: Any, y: Any, z: Any) -> Array:
        a = self._lift((x, y, z))
        return Array(self._fma[a[0].dtype](*a).astype(a[0].dtype))

    def select(self, c: Array, x: Any, y: Any) -> Array:
        a, b = self._lift((x, y))
        assert a.dtype == b.dtype
        return Array(np.where(c.data, a, b))

    def cast(self, x: Array, dtype: str) -> Array:
        return Array(np.asarray(x.data).astype(NUMPY[dtype]))

    def bitcast(self, x: Array, dtype: str) -> Array:
        return Array(np.asarray(x.data).view(NUMPY[dtype]))

    def __getattr__(self, name: str) -> Callable[..., Array]:
        if name in self._binary:

            def binary(x: Any, y: Any) -> Array:
                a, b = self._lift((x, y))
                assert a.dtype == b.dtype, (name, a.dtype, b.dtype)
                return Array(np.asarray(self._binary[name](a, b)))

            return binary
        if name in self._unary:
            return lambda x: Array(np.asarray(self._unary[name](x.data)))
        raise AttributeError(name)


def run_numpy(recipe: Callable[..., Any], *inputs: np.ndarray) -> np.ndarray:
    """The recipe on arrays, op by op."""
    with np.errstate(all="ignore"):
        result: np.ndarray = recipe(NumpyBuilder(), *[Array(np.asarray(i)) for i in inputs]).data
    return result


# ---- LLVM


@dataclass(frozen=True)
class Register:
    """An LLVM value: its spelling and its element type."""

    text: str
    dtype: str

    @property
    def type(self) -> Any:
        return _type(self.dtype)


class LlvmBuilder:
    """Writes one LLVM instruction an op, without any fast-math flag."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declared: set[str] = set()

    def _emit(self, text: str, dtype: str) -> Register:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return Register(name, dtype)

    def const(self, value: Any, like: Register) -> Register:
        if like.dtype == "wide":
            return self.cast(self.const(value, Register("", "f64")), "wide")
        if like.dtype in FLOATS:
            rounded = float(NUMPY[like.dtype](value))
            return Register("0x%016X" % struct.unpack("<Q", struct.pack("<d", rounded)), like.dtype)
        assert isinstance(value, (int, np.integer)), value
        info = np.iinfo(NUMPY[like.dtype])
        assert info.min <= value <= info.max, (value, like.dtype)
        return Register(str(int(value)), like.dtype)

    def _lift(self, operands: Sequence[Any]) -> list[Register]:
        like = next(o for o in operands if isinstance(o, Register))
        lifted = [o if isinstance(o, Register) else self.const(o, like) for o in operands]
        assert len({o.dtype for o in lifted}) == 1, lifted
        return lifted

    def _call(self, intrinsic: str, *operands: Register) -> Register:
        t = LLVM[operands[0].dtype]
        name = f"llvm.{intrinsic}.{operands[0].dtype.replace('wide', _WIDE_SUFFIX)}"
        self.declared.add(f"declare {t} @{name}({', '.join([t] * len(operands))})")
        return self._emit(f"call {t} @{name}({', '.join(f'{t} {o.text}' for o in operands)})", operands[0].dtype)

    def fma(self, x: Any, y: Any, z: Any) -> Register:
        return self._call("fma", *self._lift((x, y, z)))

    def neg(self, x: Register) -> Register:
        return self._emit(
            f"fneg {LLVM[x.dtype]} {x.text}" if x.dtype in FLOATS else f"sub {LLVM[x.dtype]} 0, {x.text}", x.dtype
        )

    def select(self, c: Register, x: Any, y: Any) -> Register:
        a, b = self._lift((x, y))
        t = LLVM[a.dtype]
        return self._emit(f"select i1 {c.text}, {t} {a.text}, {t} {b.text}", a.dtype)

    def bitcast(self, x: Register, dtype: str) -> Register:
        if LLVM[x.dtype] == LLVM[dtype]:
            return Register(x.text, dtype)
        return self._emit(f"bitcast {LLVM[x.dtype]} {x.text} to {LLVM[dtype]}", dtype)

    def cast(self, x: Register, dtype: str) -> Register:
        if x.dtype == dtype:
            return x
        a, b = x.dtype, dtype
        if a in FLOATS and b in FLOATS:
            op = "fpext" if FLOATS.index(b) > FLOATS.index(a) else "fptrunc"
        elif a in FLOATS:
            op = "fptosi" if b[0] == "i" else "fptoui"
        elif b in FLOATS:
            op = "sitofp" if a[0] == "i" else "uitofp"
        elif a[1:] == b[1:]:
            return Register(x.text, dtype)
        else:
            op = ("sext" if a[0] == "i" else "zext") if int(b[1:]) > int(a[1:]) else "trunc"
        return self._emit(f"{op} {LLVM[a]} {x.text} to {LLVM[b]}", dtype)

    def libm(self, name: str, *operands: Register) -> Register:
        """A call of the C library's function, in its `long double` form for wide operands. For oracles only."""
        t = LLVM[operands[0].dtype]
        symbol = name + ("l" if operands[0].dtype == "wide" else "")
        self.declared.add(f"declare {t} @{symbol}({', '.join([t] * len(operands))})")
        return self._emit(f"call {t} @{symbol}({', '.join(f'{t} {o.text}' for o in operands)})", operands[0].dtype)

    def isnan(self, x: Register) -> Register:
        return self._emit(f"fcmp uno {LLVM[x.dtype]} {x.text}, {x.text}", "bool")

    def logical_not(self, x: Register) -> Register:
        return self._emit(f"xor i1 {x.text}, true", "bool")

    def __getattr__(self, name: str) -> Callable[..., Register]:
        if name in ("abs", "sqrt", "floor", "ceil", "round", "trunc"):
            intrinsic = {"abs": "fabs", "round": "roundeven"}.get(name, name)
            return lambda x: self._call(intrinsic, x)
        if name in ("lt", "le", "gt", "ge", "eq", "ne"):

            def compare(x: Any, y: Any) -> Register:
                a, b = self._lift((x, y))
                if a.dtype in FLOATS:
                    op = "fcmp " + ("une" if name == "ne" else "o" + name)
                else:
                    op = "icmp " + (name if name in ("eq", "ne") else ("s" if a.dtype[0] == "i" else "u") + name)
                return self._emit(f"{op} {LLVM[a.dtype]} {a.text}, {b.text}", "bool")

            return compare
        plain = {
            "add": ("fadd", "add"),
            "sub": ("fsub", "sub"),
            "mul": ("fmul", "mul"),
            "div": ("fdiv", ""),
            "bit_and": ("", "and"),
            "bit_or": ("", "or"),
            "bit_xor": ("", "xor"),
            "logical_and": ("", "and"),
            "logical_or": ("", "or"),
            "shift_left": ("", "shl"),
            "shift_right": ("", "shr"),
        }
        if name not in plain:
            raise AttributeError(name)

        def binary(x: Any, y: Any) -> Register:
            a, b = self._lift((x, y))
            op = plain[name][0 if a.dtype in FLOATS else 1]
            if op == "shr":
                op = "ashr" if a.dtype[0] == "i" else "lshr"
            assert op, (name, a.dtype)
            return self._emit(f"{op} {LLVM[a.dtype]} {a.text}, {b.text}", a.dtype)

        return binary


def loop_text(body: Callable[..., Register], argument_types: Sequence[str]) -> str:
    """LLVM IR of `void kernel(i64 n, ptr out, ptr in0, ...)` that applies `body` to each element."""
    b = LlvmBuilder()
    out = body(b, *[Register(f"%a{i}", t) for i, t in enumerate(argument_types)])
    pointers = "".join(f", ptr noalias %in{i}" for i in range(len(argument_types)))
    lines = [f"define void @kernel(i64 %n, ptr noalias %out{pointers}) {{"]
    lines += ["entry:", "  br label %loop", "loop:", "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]"]
    for i, t in enumerate(argument_types):
        lines.append(f"  %p{i} = getelementptr {LLVM[t]}, ptr %in{i}, i64 %i")
        lines.append(f"  %a{i} = load {LLVM[t]}, ptr %p{i}")
    lines += b.lines
    t = LLVM[out.dtype]
    lines += [f"  %q = getelementptr {t}, ptr %out, i64 %i", f"  store {t} {out.text}, ptr %q"]
    lines += [
        "  %next = add nuw i64 %i, 1",
        "  %more = icmp ult i64 %next, %n",
        "  br i1 %more, label %loop, label %done",
    ]
    lines += ["done:", "  ret void", "}"]
    return "\n".join(sorted(b.declared) + lines)


def _machine() -> Any:
    """A new target machine: an engine takes its own away from us."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def optimise(text: str, machine: Any = None) -> Any:
    """The parsed, verified and optimised (vectorised) module; for this machine unless told."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options()
    options.loop_vectorization = True
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine or _machine(), options)
    builder.getModulePassManager().run(module, builder)
    return module


def compile_ptx(text: str, cpu: str) -> str:
    """The loop as PTX, as a device function."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "nvptx64-nvidia-cuda"
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    ptx: str = machine.emit_assembly(optimise(f'target triple = "{triple}"\n{text}', machine))
    return ptx


_alive: list[Any] = []


def compile_loop(
    body: Callable[..., Register], argument_types: Sequence[str], result_type: str
) -> Callable[..., np.ndarray]:
    """`body` as a native loop over arrays of the given element types."""
    engine = llvm.create_mcjit_compiler(optimise(loop_text(body, argument_types)), _machine())
    engine.finalize_object()
    _alive.append(engine)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (len(argument_types) + 1))
    kernel = prototype(engine.get_function_address("kernel"))

    def run(*inputs: np.ndarray) -> np.ndarray:
        arrays = [np.ascontiguousarray(i, dtype=NUMPY[t]) for i, t in zip(inputs, argument_types, strict=True)]
        out = np.zeros(arrays[0].shape, dtype=NUMPY[result_type])
        assert all(a.shape == out.shape for a in arrays)
        kernel(out.size, out.ctypes.data, *[a.ctypes.data for a in arrays])
        return out

    return run


def compile_recipe(recipe: Callable[..., Any], dtype: str, arity: int = 1) -> Callable[..., np.ndarray]:
    """The recipe as a native vector loop over arrays."""
    return compile_loop(recipe, [dtype] * arity, dtype)


def compile_oracle(oracle: Callable[..., Any], dtype: str, arity: int = 1) -> Callable[..., np.ndarray]:
    """The oracle for recipes of type `dtype`, from arrays of that type to arrays of the next wider one."""
    wide = ORACLE_OF[dtype]
    return compile_loop(lambda b, *x: oracle(b, *[b.cast(v, wide) for v in x]), [dtype] * arity, wide)


def compile_error(
    recipe: Callable[..., Any], oracle: Callable[..., Any], dtype: str, arity: int = 1
) -> Callable[..., np.ndarray]:
    """The recipe's error against the oracle, in ulp of the correctly rounded result, as a loop.

    Overflow counts as the power of two above the largest number; a NaN for a number, a number for a NaN, and a zero of
    the wrong sign are infinitely wrong.
    """
    wide = ORACLE_OF[dtype]
    mantissa, least, largest = (23, -126, 127) if dtype == "f32" else (52, -1022, 1023)
    integer = "i32" if dtype == "f32" else "i64"

    def body(b: LlvmBuilder, *x: Register) -> Register:
        got = recipe(b, *x)
        want = oracle(b, *[b.cast(v, wide) for v in x])
        rounded = b.cast(want, dtype)
        exponent_mask = (2 * largest + 1) << mantissa
        binade = b.bitcast(b.bit_and(b.bitcast(rounded, integer), exponent_mask), dtype)
        binade = b.select(b.gt(binade, 2.0**largest), 2.0**largest, binade)
        binade = b.select(b.lt(binade, 2.0**least), 2.0**least, binade)
        ulp = b.cast(b.mul(binade, 2.0**-mantissa), wide)
        beyond = b.mul(b.cast(b.const(2.0**largest, got), wide), 2.0)

        def clamp(v: Register) -> Register:
            v = b.select(b.gt(v, beyond), beyond, v)
            return b.select(b.lt(v, b.neg(beyond)), b.neg(beyond), v)

        error = b.div(b.abs(b.sub(clamp(b.cast(got, wide)), clamp(want))), ulp)
        error = b.select(b.isnan(error), math.inf, error)
        both_nan = b.logical_and(b.isnan(got), b.isnan(want))
        error = b.select(both_nan, 0.0, error)
        both_zero = b.logical_and(b.eq(got, 0.0), b.eq(rounded, 0.0))
        signs_differ = b.lt(b.bit_xor(b.bitcast(got, integer), b.bitcast(rounded, integer)), 0)
        error = b.select(b.logical_and(both_zero, signs_differ), math.inf, error)
        return b.cast(error, "f64")

    return compile_loop(body, [dtype] * arity, "f64")
