"""Calls that ask for a derived function, and what the transforms need of the user's function: one closed function of the
module, with its arguments and results as lists of tensors.

Owns no meaning: `call @f [transform=...]` says what is wanted, a pass makes it. The tensors that the function captures
become arguments, so that a transform around this one can differentiate with respect to them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.errors import error
from fluxir.frontend import tree
from fluxir.frontend.staging import staged
from fluxir.frontend.tensor import Tensor, as_tensor
from fluxir.frontend.trace import Scope, close_regions, function_name, here, inside, scope, trace_region
from fluxir.ir.core import Attrs, Func, Value
from fluxir.ir.types import TensorType
from fluxir.ops.control import Transform


@dataclass(frozen=True)
class Closed:
    """A function of the module made from the user's: its name, the values it captured, the structure of its result."""

    name: str
    captured: tuple[Value, ...]
    owner: Scope
    types: tuple[TensorType, ...]
    out_tree: tree.TreeDef
    fn_name: str


def close(
    fn: Callable[..., Any], leaves: Sequence[Tensor], rebuild: Callable[[Sequence[Tensor]], Any], **attrs: Any
) -> Closed:
    """Trace `fn` on tensors like `leaves`, which `rebuild` makes into its `(args, kwargs)`, as a function of the module."""
    run = staged(fn)

    def body(*xs: Tensor) -> Any:
        args, kwargs = rebuild(xs)
        return run(*args, **kwargs)

    region = trace_region([t.type for t in leaves], body, weak=[t.weak for t in leaves])
    outs, out_tree = tree.flatten(region.out)
    with inside(region) as s:
        region.outs = [s.use(x.value, x.scope) for x in map(as_tensor, outs)]
    captured, (block,) = close_regions([region])
    t = scope().trace
    name = t.fresh_name(function_name(fn))
    t.funcs[name] = Func(name, block, attrs=Attrs(attrs))
    types = tuple(v.type for v in region.outs)
    return Closed(name, tuple(captured), scope(), types, out_tree, function_name(fn))  # type: ignore[arg-type]


def call(f: Closed, leaves: Sequence[Tensor], **attrs: Any) -> list[Tensor]:
    """Call a closed function as it is."""
    return _emit(f, leaves, (), f.types, **attrs)


def call_derived(
    f: Closed, leaves: Sequence[Tensor], kind: str, wrt: Sequence[int], of: Sequence[int], extra: Sequence[Tensor]
) -> list[Tensor]:
    """Ask for a derivative of a closed function at `leaves`; see `Transform` for what each kind takes and gives."""
    grads = [leaves[i].type for i in wrt]
    types: list[TensorType] = []
    if kind != "pullback":
        types += f.types
    types += [f.types[j] for j in of] if kind == "jvp" else grads
    return _emit(f, leaves, extra, types, transform=str(Transform(kind, tuple(wrt), tuple(of))))


def call_batched(
    f: Closed, leaves: Sequence[Tensor], flags: Sequence[bool], types: Sequence[TensorType]
) -> list[Tensor]:
    """Ask for the function over one more leading axis of the flagged leaves."""
    wrt = tuple(i for i, flag in enumerate(flags) if flag)
    return _emit(f, leaves, (), types, transform=str(Transform("batch", wrt)))


def _emit(
    f: Closed, leaves: Sequence[Tensor], extra: Sequence[Tensor], types: Sequence[TensorType], **attrs: Any
) -> list[Tensor]:
    s = scope()
    captured = [s.use(v, f.owner) for v in f.captured]
    operands = [*[s.use(t.value, t.scope) for t in leaves], *captured, *[s.use(t.value, t.scope) for t in extra]]
    results = s.emit("call", operands, (), {"callee": f.name, "results": tuple(types), **attrs})
    return [Tensor(v, s) for v in results]


def require_float(what: str, t: Tensor) -> None:
    """FX0411 unless a derivative with respect to `t` means something."""
    if not t.dtype.is_float:
        raise error("FX0411", f"{what} is {t.type}: derivatives are taken with respect to floats", loc=here(),
                    help="convert it to a float type first, or name other arguments with argnums")  # fmt: skip


__all__ = ["Closed", "call", "call_batched", "call_derived", "close", "require_float"]
