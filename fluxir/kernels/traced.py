"""A kernel called on tensors that are being traced: it becomes a `kernel` op of the program.

A tensor does not change, so the call returns what it would have written: the arrays that the kernel writes to, as it leaves
them, in the order of its parameters (one alone, or a tuple). The kernel is compiled for the tensors' own sizes, symbols
included; numbers are given to it in memory, as tensors of rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fluxir.errors import error
from fluxir.frontend.kernel.signature import Param
from fluxir.frontend.kernel.signature import leaves as leaf_params
from fluxir.frontend.tensor import Tensor, as_tensor
from fluxir.frontend.trace import here, scope
from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Attrs, Block, Func, Value
from fluxir.ir.dims import Dim, Poly, require_equal
from fluxir.ir.types import MemType, TensorType
from fluxir.kernels.build import Build

__all__ = ["call_traced"]


def call_traced(
    fn: Callable[..., Any], params: Sequence[Param], leaves: Sequence[Any], grid: Sequence[Dim], block: Sequence[int]
) -> Any:
    """Emit the call; returns the written arrays. FX0603 and FX0602 for types and sizes that do not fit the annotations."""
    s = scope()
    name = fn.__name__
    wanted = list(leaf_params(params))
    tensors = [_tensor(name, p, x) for p, x in zip(wanted, leaves, strict=True)]
    sizes: dict[str, Dim] = {}
    for p, t in zip(wanted, tensors, strict=True):
        _fits(name, p, t, sizes)
    build = Build(fn, [_with_types(p, iter(t.type for t in tensors[_before(params, p) :])) for p in params], ())
    if build.reported[1]:
        raise error("FX0335", f"{name} prints or asserts, which it cannot do inside a traced program", loc=here(),
                    help="launch it on arrays, outside of the traced function")  # fmt: skip
    if build.cooperative:
        raise error("FX0335", f"{name} waits for the whole grid, which it cannot do inside a traced program", loc=here(),
                    help="split it into two kernels")  # fmt: skip
    written = sorted(build.written)
    if not written:
        raise error("FX0335", f"{name} writes to none of its arguments, so it does nothing here", loc=here())
    trace = s.trace
    callee = trace.fresh_name(name)
    f = _scalars_in_memory(build.func, callee)
    trace.funcs[callee] = f
    operands = [s.use(t.value, t.scope) for t in tensors]
    attrs = {"callee": callee, "grid": tuple(grid), "block": tuple(block), "writes": tuple(written)}
    results = s.emit("kernel", operands, (), attrs)
    out = tuple(Tensor(r, s) for r in results)
    return out[0] if len(out) == 1 else out


def _tensor(name: str, p: Param, x: Any) -> Tensor:
    t = as_tensor(x)
    assert p.type is not None
    if p.kind == "scalar" and t.weak and t.dtype != p.type.dtype:
        t = as_tensor(x).astype(p.type.dtype)  # a Python number takes the parameter's type
    if t.dtype != p.type.dtype:
        raise error("FX0603", f"{name}: {p.name} holds {p.type.dtype}, given {t.type}", loc=here())
    return t


def _fits(name: str, p: Param, t: Tensor, sizes: dict[str, Dim]) -> None:
    """The tensor has the rank, and equal sizes where the annotation says so."""
    assert p.type is not None
    if len(p.type.shape) != t.ndim:
        raise error("FX0602", f"{name}: {p.name} is {p.type}, given {t.type}", loc=here())
    for want, have in zip(p.type.shape, t.shape, strict=True):
        if isinstance(want, Poly):
            want = sizes.setdefault(str(want), have)
        if not require_equal(want, have):
            raise error("FX0602", f"{name}: {p.name} is {p.type}, given {t.type}: {have} is not {want}", loc=here())


def _before(params: Sequence[Param], p: Param) -> int:
    """How many leaves come before those of a parameter."""
    at = next(i for i, q in enumerate(params) if q is p)
    return len(list(leaf_params(params[:at])))


def _with_types(p: Param, types: Any) -> Param:
    """The parameter with the tensors' own types."""
    if p.kind == "array":
        return replace(p, type=next(types))
    if p.kind == "scalar":
        next(types)
        return p
    return replace(p, parts=tuple(_with_types(q, types) for q in p.parts))


def _scalars_in_memory(f: Func, name: str) -> Func:
    """The kernel with each scalar argument read from a memory of rank 0."""
    types = [a.type if isinstance(a.type, MemType) else MemType(a.type.dtype, ()) for a in f.args]
    args = [Value(t, None, i, a.name) for i, (a, t) in enumerate(zip(f.args, types, strict=True))]
    b = Builder(f.loc)
    env: dict[Value, Value] = {}
    for old, new in zip(f.args, args, strict=True):
        env[old] = b.emit("load", new)[0] if isinstance(old.type, TensorType) else new
    clone_ops(b, f.block.ops, env)
    return Func(name, Block(args, b.ops, ()), "kernel", Attrs({"grid": (), "block": ()}), (), f.loc)
