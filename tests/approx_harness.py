"""Two builders that give recipes a meaning without the rest of the compiler, and oracles to compare with.

`NumpyBuilder` executes each op at once on numpy arrays: the plain meaning. `LlvmBuilder` writes LLVM IR, so that a
recipe becomes a vectorised loop with true fused multiply-adds: what the tests run on millions of inputs.
"""

from __future__ import annotations

import ctypes
import functools
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
        if like.dtype in ("f32", "f64"):
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
        name = f"llvm.{intrinsic}.{operands[0].dtype}"
        self.declared.add(f"declare {t} @{name}({', '.join([t] * len(operands))})")
        return self._emit(f"call {t} @{name}({', '.join(f'{t} {o.text}' for o in operands)})", operands[0].dtype)

    def fma(self, x: Any, y: Any, z: Any) -> Register:
        return self._call("fma", *self._lift((x, y, z)))

    def neg(self, x: Register) -> Register:
        return self._emit(f"fneg {LLVM[x.dtype]} {x.text}" if x.dtype[0] == "f" else f"sub {LLVM[x.dtype]} 0, {x.text}", x.dtype)

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
        wider = int(b[1:]) > int(a[1:])
        if a[0] == "f" and b[0] == "f":
            op = "fpext" if wider else "fptrunc"
        elif a[0] == "f":
            op = "fptosi" if b[0] == "i" else "fptoui"
        elif b[0] == "f":
            op = "sitofp" if a[0] == "i" else "uitofp"
        elif a[1:] == b[1:]:
            return Register(x.text, dtype)
        else:
            op = ("sext" if a[0] == "i" else "zext") if wider else "trunc"
        return self._emit(f"{op} {LLVM[a]} {x.text} to {LLVM[b]}", dtype)

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
                if a.dtype[0] == "f":
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
            op = plain[name][0 if a.dtype[0] == "f" else 1]
            if op == "shr":
                op = "ashr" if a.dtype[0] == "i" else "lshr"
            assert op, (name, a.dtype)
            return self._emit(f"{op} {LLVM[a.dtype]} {a.text}, {b.text}", a.dtype)

        return binary


def _loop(body: Callable[[LlvmBuilder, list[Register]], tuple[str, str]], argument_types: Sequence[str], result_type: str) -> str:
    """LLVM IR of `void kernel(i64 n, ptr out, ptr in0, ...)` that applies `body` to each element."""
    b = LlvmBuilder()
    names = [f"%a{i}" for i in range(len(argument_types))]
    out = body(b, [Register(n, t) for n, t in zip(names, argument_types, strict=True)])
    lines = [f"define void @kernel(i64 %n, ptr noalias %out, {', '.join(f'ptr noalias %in{i}' for i in range(len(names)))}) {{"]
    lines += ["entry:", "  br label %loop", "loop:", "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]"]
    for i, t in enumerate(argument_types):
        lines.append(f"  %p{i} = getelementptr {LLVM[t]}, ptr %in{i}, i64 %i")
        lines.append(f"  %a{i} = load {LLVM[t]}, ptr %p{i}")
    lines += b.lines
    lines += [f"  %q = getelementptr {out[0]}, ptr %out, i64 %i", f"  store {out[0]} {out[1]}, ptr %q"]
    lines += ["  %next = add nuw i64 %i, 1", "  %more = icmp ult i64 %next, %n", "  br i1 %more, label %loop, label %done"]
    lines += ["done:", "  ret void", "}"]
    return "\n".join(sorted(b.declared) + lines)


@functools.cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


_alive: list[Any] = []


def _native(text: str) -> Callable[..., None]:
    module = llvm.parse_assembly(text)
    module.verify()
    machine = _machine()
    options = llvm.create_pipeline_tuning_options()
    options.loop_vectorization = True
    options.loop_interleaving = False
    llvm.create_pass_builder(machine, options).getModulePassManager().run(module, llvm.create_pass_builder(machine, options))
    engine = llvm.create_mcjit_compiler(module, _machine_copy())
    engine.finalize_object()
    _alive.append(engine)
    count = text.split("{", 1)[0].count("ptr")
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * count)
    return prototype(engine.get_function_address("kernel"))


def _machine_copy() -> Any:
    """MCJIT takes its target machine away from us, so each engine gets its own."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def recipe_text(recipe: Callable[..., Any], dtype: str, arity: int) -> str:
    """The loop around a recipe, as LLVM IR before optimisation."""

    def body(b: LlvmBuilder, registers: list[Register]) -> tuple[str, str]:
        out = recipe(b, *registers)
        assert out.dtype == dtype, out
        return LLVM[dtype], out.text

    return _loop(body, [dtype] * arity, dtype)


def compile_recipe(recipe: Callable[..., Any], dtype: str, arity: int = 1) -> Callable[..., np.ndarray]:
    """The recipe as a native vector loop over arrays."""
    kernel = _native(recipe_text(recipe, dtype, arity))

    def run(*inputs: np.ndarray) -> np.ndarray:
        arrays = [np.ascontiguousarray(i, dtype=NUMPY[dtype]) for i in inputs]
        out = np.empty(arrays[0].shape, dtype=NUMPY[dtype])
        kernel(out.size, out.ctypes.data, *[a.ctypes.data for a in arrays])
        return out

    return run


# ---- oracles


def _longdouble_name() -> tuple[str, str]:
    bits = np.finfo(np.longdouble).nmant
    return {63: ("x86_fp80", "fpext double {} to x86_fp80"), 112: ("fp128", "fpext double {} to fp128")}[bits]


@functools.cache
def wide_libm(function: str, arity: int = 1) -> Callable[..., np.ndarray]:
    """The C library's `long double` function as a loop from float64 to np.longdouble arrays."""
    wide, extend = _longdouble_name()

    def body(b: LlvmBuilder, registers: list[Register]) -> tuple[str, str]:
        wides = [b._emit(extend.format(r.text), "f64").text for r in registers]
        b.declared.add(f"declare {wide} @{function}l({', '.join([wide] * arity)})")
        result = b._emit(f"call {wide} @{function}l({', '.join(f'{wide} {w}' for w in wides)})", "f64")
        return wide, result.text

    kernel = _native(_loop(body, ["f64"] * arity, "f64"))

    def run(*inputs: np.ndarray) -> np.ndarray:
        arrays = [np.ascontiguousarray(i, dtype=np.float64) for i in inputs]
        out = np.zeros(arrays[0].shape, dtype=np.longdouble)
        kernel(out.size, out.ctypes.data, *[a.ctypes.data for a in arrays])
        return out

    return run


@functools.cache
def libm(function: str, arity: int = 1) -> Callable[..., np.ndarray]:
    """The C library's `double` function as a loop over float64 arrays."""

    def body(b: LlvmBuilder, registers: list[Register]) -> tuple[str, str]:
        b.declared.add(f"declare double @{function}({', '.join(['double'] * arity)})")
        result = b._emit(f"call double @{function}({', '.join(f'double {r.text}' for r in registers)})", "f64")
        return "double", result.text

    kernel = _native(_loop(body, ["f64"] * arity, "f64"))

    def run(*inputs: np.ndarray) -> np.ndarray:
        arrays = [np.ascontiguousarray(i, dtype=np.float64) for i in inputs]
        out = np.empty(arrays[0].shape)
        kernel(out.size, out.ctypes.data, *[a.ctypes.data for a in arrays])
        return out

    return run
