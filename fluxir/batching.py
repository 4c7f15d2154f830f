"""`vmap`: a function over one more axis of its arguments; and what it gives: Jacobians and Hessians.

As the transforms in `transform.py`: inside a trace the function becomes one of the module and the derive pass makes its
batched form (`passes/batch.py`); outside a trace the program is evaluated at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.frontend import api_creation, api_manipulation, derived, tree
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import function_name, here, scope
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, require_equal
from fluxir.ir.types import TensorType
from fluxir.passes.batch import batched_results, batched_type
from fluxir.transform import ArgNums, Arguments, named_like, transforming


def vmap(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0, axis_size: Any = None) -> Callable[..., Any]:
    """`fun` over one more axis of its arguments, for all its places at once.

    `in_axes` says which axis of each positional argument is mapped: an integer, None for one that all calls share, or a tree
    of these that begins like the argument. Keyword arguments are mapped over their first axis. `out_axes` says where the
    axis goes in the results; None is for a result that is the same for all calls. `axis_size` is needed only where nothing
    is mapped. Every op and all control flow is mapped; calls that take different branches or numbers of rounds are right,
    and cost what the longest of them costs. FX0414.
    """

    @named_like(fun)
    @transforming
    def run(*args: Any, **kwargs: Any) -> Any:
        c = Arguments(fun, args, kwargs, None)
        name = function_name(fun)
        per_leaf = [
            *_axes(in_axes, c.structure.children[0], f"in_axes of {name!r}", True),
            *[0] * c.structure.children[1].leaf_count,
        ]
        paths = c.structure.paths()
        axes = {k: _mapped_axis(per_leaf[i], c.tensors[k], _argument(fun, paths[i])) for k, i in enumerate(c.places)}
        flags = [axes[k] is not None for k in range(len(c.tensors))]
        size = _common_size(name, c, axes, axis_size, [_argument(fun, paths[i]) for i in c.places])
        front = [t if axes[k] is None else api_manipulation.moveaxis(t, axes[k], 0) for k, t in enumerate(c.tensors)]
        elements = [_element(t) if flag else t for t, flag in zip(front, flags, strict=True)]
        f = derived.close(fun, elements, c.rebuild, name=fun)
        if any(flags):
            types = [batched_type(t, size) for t in f.types]
            results = derived.call_batched(f, front, flags, types)
        else:
            results = [api_manipulation.broadcast_to(r, (size, *r.shape)) for r in derived.call(f, front)]
        places = _axes(out_axes, f.out_tree, f"out_axes of {name!r}", False)
        varies = batched_results(scope().trace.funcs[f.name].block, [*flags, *[False] * len(f.captured)])
        out_paths = f.out_tree.paths()
        outs = [
            _placed(r, a, v, name, tree.path_text(p))
            for r, a, v, p in zip(results, places, varies, out_paths, strict=True)
        ]
        return f.out_tree.unflatten(outs)

    return run


def _axes(axes: Any, structure: tree.TreeDef, what: str, arguments: bool) -> list[int | None]:
    """An axis for every leaf of `structure`, from a tree of them that begins like it. FX0414."""
    given, like = tree.flatten(axes, lambda x: x is None)
    for a in given:
        if a is not None and (isinstance(a, bool) or not hasattr(a, "__index__")):
            raise error("FX0414", f"{what}: an axis is an integer or None, not {a!r}", loc=here())
    rest = iter(given)

    def fill(a: tree.TreeDef, t: tree.TreeDef, path: tuple[Any, ...]) -> list[int | None]:
        if a == tree.LEAF:
            return [next(rest)] * t.leaf_count
        both = {a.kind, t.kind}
        if a.keys != t.keys or (a.kind != t.kind and not both <= {"tuple", "list"}):
            at = f" at {tree.path_text(path)}" if path else ""
            wanted = "the arguments are" if arguments else "the result is"
            raise error("FX0414", f"{what} does not fit{at}: it is {a}, {wanted} {t}", loc=here(),
                        help="an axis (or None) may stand for a whole argument or part of one")  # fmt: skip
        parts = zip(a.keys, a.children, t.children, strict=True)
        return [x for key, p, q in parts for x in fill(p, q, (*path, key))]

    return fill(like, structure, ())


def _argument(fun: Callable[..., Any], path: tree.Path) -> str:
    """How a leaf of `(args, kwargs)` is called in messages: `params.w`, by the function's own names."""
    part, key, *rest = path
    if part == 0:
        try:
            names = [
                p.name
                for p in inspect.signature(fun).parameters.values()
                if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
        except (TypeError, ValueError):
            names = []
        key = names[key] if key < len(names) else f"argument {key}"
    return tree.path_text((key, *rest))


def _mapped_axis(axis: int | None, t: Tensor, what: str) -> int | None:
    """The mapped axis of an argument counted from 0. FX0414."""
    if axis is None:
        return None
    if not -t.ndim <= axis < t.ndim:
        shown = f"axis {axis} of {what} is mapped, which is {t.type}"
        help = f"axes run from {-t.ndim} to {t.ndim - 1}" if t.ndim else "a scalar has no axis: in_axes=None for it"
        raise error("FX0414", f"vmap: {shown}", loc=here(), help=help)
    return axis % t.ndim


def _common_size(name: str, c: Arguments, axes: dict[int, int | None], given: Any, names: Sequence[str]) -> Dim:
    """The size of all mapped axes. FX0414 names two that differ."""
    found: tuple[Dim, str] | None = None
    if given is not None:
        found = api_creation.as_shape(given)[0], "axis_size"
    for k, axis in axes.items():
        if axis is None:
            continue
        size = c.tensors[k].shape[axis]
        if found is None:
            found = size, f"axis {axis} of {names[k]}"
        elif not require_equal(found[0], size):
            raise error("FX0414", f"vmap of {name!r}: mapped axes differ in size: {found[0]} ({found[1]}) is not {size} "
                        f"(axis {axis} of {names[k]})", loc=here())  # fmt: skip
    if found is None:
        raise error("FX0414", f"vmap of {name!r}: no argument is mapped", loc=here(),
                    help="name an axis with in_axes, or give axis_size")  # fmt: skip
    return found[0]


def _element(t: Tensor) -> Tensor:
    """A tensor like one slice of `t` along its first axis; only its type counts."""
    return Tensor(Value(TensorType(t.dtype, t.shape[1:])), scope(), weak=t.weak)


def _placed(r: Tensor, axis: int | None, varies: bool, name: str, path: str) -> Tensor:
    """A result with its batch axis moved from the front to `axis`, or without it."""
    where = f" at {path}" if path else ""
    if axis is None:
        if varies:
            raise error("FX0414", f"vmap of {name!r}: out_axes is None for the result{where}, which differs between calls",
                        loc=here())  # fmt: skip
        return r[0]
    if not -r.ndim <= axis < r.ndim:
        raise error(
            "FX0414", f"vmap of {name!r}: out_axes is {axis} for the result{where}, which is {r.type}", loc=here()
        )
    return api_manipulation.moveaxis(r, 0, axis)


# ---- Jacobians --------------------------------------------------------------------------------------------------------------


def jacrev(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives the Jacobian of `fun` by reverse mode, a row at a time and all of them at once.

    For each leaf of the result stands the structure of the argument `argnums` (a tuple of them for several), with leaves of
    the shape of the result's leaf followed by the argument's. Best where the result is smaller than the argument.
    """

    @named_like(fun)
    @transforming
    def run(*args: Any, **kwargs: Any) -> Any:
        c = Arguments(fun, args, kwargs, argnums)
        f = c.close()
        out_tree, count = _value_part(f, has_aux)
        rows = []
        _require_float(f.fn_name, f.types[:count])
        for j, t in enumerate(f.types[:count]):
            if not t.dtype.is_float:
                rows.append(_still(c, t))
                continue
            pull = vmap(lambda e, j=j: derived.call_derived(f, c.tensors, "pullback", c.wrt, [j], [e]))
            grads = pull(_basis(t))
            rows.append(c.gathered([_unflat(g, t.shape, 0) for g in grads], t.shape))
        jac = out_tree.unflatten(rows)
        return (jac, f.out_tree.unflatten(derived.call(f, c.tensors))[1]) if has_aux else jac

    return run


def jacfwd(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The Jacobian of `fun` by forward mode, a column at a time and all of them at once; see `jacrev`. Best where the
    argument is smaller than the result."""

    @named_like(fun)
    @transforming
    def run(*args: Any, **kwargs: Any) -> Any:
        c = Arguments(fun, args, kwargs, argnums)
        f = c.close()
        out_tree, count = _value_part(f, has_aux)
        _require_float(f.fn_name, f.types[:count])
        n, of = len(f.types), [j for j, t in enumerate(f.types[:count]) if t.dtype.is_float]
        columns = []
        for k in c.wrt:
            t = c.tensors[k].type
            push = vmap(lambda e, k=k: derived.call_derived(f, c.tensors, "jvp", [k], of, [e])[n:], out_axes=-1)
            columns.append([_unflat(v, t.shape, v.ndim - 1) for v in push(_basis(t))])
        rows = {j: c.gathered([col[i] for col in columns], f.types[j].shape) for i, j in enumerate(of)}
        jac = out_tree.unflatten([rows[j] if j in rows else _still(c, t) for j, t in enumerate(f.types[:count])])
        return (jac, f.out_tree.unflatten(derived.call(f, c.tensors))[1]) if has_aux else jac

    return run


def jacobian(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The Jacobian of `fun`, by reverse mode: `jacrev`."""
    return jacrev(fun, argnums, has_aux)


def hessian(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives the second derivatives of `fun`: forward over reverse, `jacfwd(jacrev(fun))`."""
    return jacfwd(jacrev(fun, argnums, has_aux), argnums, has_aux)


def _value_part(f: derived.Closed, has_aux: bool) -> tuple[tree.TreeDef, int]:
    """The structure of what is differentiated, and how many leaves it has: the first results."""
    if not has_aux:
        return f.out_tree, len(f.types)
    if f.out_tree.kind != "tuple" or len(f.out_tree.children) != 2:
        raise error("FX0411", f"with has_aux {f.fn_name!r} returns a pair (value, aux)", loc=here())
    return f.out_tree.children[0], f.out_tree.children[0].leaf_count


def _require_float(name: str, types: Sequence[TensorType]) -> None:
    """FX0411 unless there is a float among the results. Leaves beside it that are none get zeros, as in gradients."""
    if not any(t.dtype.is_float for t in types):
        shown = ", ".join(map(str, types)) or "nothing"
        raise error("FX0411", f"{name!r} returns {shown}: a Jacobian is that of floats", loc=here(),
                    help="return it as aux with has_aux=True")  # fmt: skip


def _still(c: Arguments, t: TensorType) -> Any:
    """The Jacobian of a result that is no float: zeros of its type."""
    zeros = [api_creation.zeros((*t.shape, *c.tensors[k].shape), dtype=t.dtype) for k in c.wrt]
    return c.gathered(zeros, t.shape)


def _basis(t: TensorType) -> Tensor:
    """All unit vectors of a type: [size, *shape]."""
    return api_manipulation.reshape(api_creation.eye(t.size, dtype=t.dtype), (t.size, *t.shape))


def _unflat(x: Tensor, shape: Sequence[Dim], axis: int) -> Tensor:
    """`x` with one axis split into `shape`."""
    return api_manipulation.reshape(x, (*x.shape[:axis], *shape, *x.shape[axis + 1 :]))


__all__ = ["hessian", "jacfwd", "jacobian", "jacrev", "vmap"]
