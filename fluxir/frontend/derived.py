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
from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Attrs, Block, Func, Value
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
    fn: Callable[..., Any],
    leaves: Sequence[Tensor],
    rebuild: Callable[[Sequence[Tensor]], Any],
    *,
    name: Any = None,
    alone: bool = False,
    reserved: str = "",
    **attrs: Any,
) -> Closed:
    """Trace `fn` on tensors like `leaves`, which `rebuild` makes into its `(args, kwargs)`, as a function of the module.

    `alone`: it may capture constants only, which become part of it (FX0413); `reserved`: the name it has been given; `attrs`
    are the function's attributes.
    """
    run = staged(fn)

    def body(*xs: Tensor) -> Any:
        args, kwargs = rebuild(xs)
        return run(*args, **kwargs)

    return _define(body, [t.type for t in leaves], [t.weak for t in leaves], name or fn, alone, attrs, reserved)


def close_types(fn: Callable[..., Any], types: Sequence[TensorType], name: Any, reserved: str = "") -> Closed:
    """Trace `fn` on tensors of `types` as a function of the module that captures constants only."""
    return _define(fn, types, [False] * len(types), name, True, {}, reserved)


def reserve(fn: Any) -> str:
    """A name in the module for a function that is traced later."""
    t = scope().trace
    name = t.fresh_name(function_name(fn))
    t.funcs[name] = Func(name, Block((), (), ()))
    return name


def _define(
    body: Callable[..., Any],
    types: Sequence[TensorType],
    weak: Sequence[bool],
    named: Any,
    alone: bool,
    attrs: Any,
    reserved: str,
) -> Closed:
    region = trace_region(types, body, weak=weak)
    outs, out_tree = tree.flatten(region.out)
    with inside(region) as s:
        region.outs = [s.use(x.value, x.scope) for x in map(as_tensor, outs)]
    captured, (block,) = close_regions([region])
    fn_name = function_name(named)
    if alone:
        block = _with_constants(block, captured, len(types), fn_name)
        captured = []
    t = scope().trace
    name = reserved or t.fresh_name(fn_name)
    t.funcs[name] = Func(name, block, attrs=Attrs(attrs))
    result_types = tuple(v.type for v in region.outs)
    return Closed(name, tuple(captured), scope(), result_types, out_tree, fn_name)  # type: ignore[arg-type]


def _with_constants(block: Block, captured: Sequence[Value], count: int, name: str) -> Block:
    """The block with captured constants made inside it; FX0413 for any other captured value."""
    b = Builder()
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(block.args[:count])]
    env = dict(zip(block.args[:count], args, strict=True))
    for inner, outer in zip(block.args[count:], captured, strict=True):
        array = scope().array(outer)
        if array is None:
            shown = f"{outer.name}: {outer.type}" if outer.name else str(outer.type)
            raise error(
                "FX0413",
                f"{name!r} has a derivative of its own and uses a traced value from outside ({shown})",
                help="pass it as an argument: the rule must say what its derivative is",
                loc=here(),
            )
        env[inner] = b.const(array)
    clone_ops(b, block.ops, env)
    return Block(args, b.ops, [env.get(v, v) for v in block.outs])


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


__all__ = ["Closed", "call", "call_batched", "call_derived", "close", "close_types", "reserve"]
