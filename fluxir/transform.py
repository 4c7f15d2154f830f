"""Functions of functions: `grad`, `vjp`, `jvp`, `vmap` and their relatives.

Inside a trace each of them makes its argument a function of the module and asks for a derived one; the derive pass makes it,
so that transforms nest in any order and the whole program is compiled as one. Outside a trace they run at once on numpy
arrays: the program is traced, its transforms are resolved, and it is evaluated op by op. `fx.jit` around them compiles.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fluxir.passes  # noqa: F401  (what resolves a transform where control flow is evaluated eagerly)
from fluxir.errors import error
from fluxir.frontend import api_creation, api_manipulation, derived, tree
from fluxir.frontend.tensor import Tensor, as_tensor
from fluxir.frontend.trace import EagerScope, current, function_name, here, is_tracing, trace
from fluxir.ir.dims import Dim
from fluxir.ir.interp import interpret
from fluxir.ir.types import TensorType

ArgNums = int | Sequence[int]


# ---- outside a trace ------------------------------------------------------------------------------------------------------


def evaluate(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`fn(*args, **kwargs)` as one program, traced, its transforms resolved, and interpreted on numpy arrays."""
    from fluxir.driver import DERIVE, run_passes

    s = current()
    if s is not None:  # in a public function that evaluates eagerly
        assert isinstance(s, EagerScope)
        args, kwargs = tree.map(functools.partial(_array, s), (tuple(args), kwargs))
    leaves, structure = tree.flatten((tuple(args), kwargs))
    places = [i for i, x in enumerate(leaves) if _is_array(x)]

    def program(*xs: Any) -> Any:
        full = list(leaves)
        for i, x in zip(places, xs, strict=True):
            full[i] = x
        a, k = structure.unflatten(full)
        return fn(*a, **k)

    given = [leaves[i] for i in places]
    t = trace(program, given, name=function_name(fn))
    module, _ = run_passes(t.module, DERIVE, verify="off")
    arrays = [np.asarray(x, v.type.dtype.numpy) for x, v in zip(given, module.entry.args, strict=True)]
    out = t.out_tree.unflatten(interpret(module, arrays))
    return out if s is None else tree.map(as_tensor, out)


def _array(s: EagerScope, x: Tensor) -> Any:
    return s.arrays[s.use(x.value, x.scope)]


def _is_array(x: Any) -> bool:
    return (
        isinstance(x, (bool, int, float, np.ndarray, np.generic)) or hasattr(x, "__dlpack__") or hasattr(x, "__array__")
    )


def named_like(fun: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a derived function the name, documentation and signature of the one it comes from."""

    def rename(run: Callable[..., Any]) -> Callable[..., Any]:
        functools.update_wrapper(run, fun)
        run.__dict__.pop("__wrapped__", None)  # it is not that function in other clothes
        with contextlib.suppress(TypeError, ValueError):
            run.__signature__ = inspect.signature(fun)  # type: ignore[attr-defined]
        return run

    return rename


def transforming(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that works inside a trace; outside one it evaluates."""

    @named_like(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs) if is_tracing() else evaluate(fn, args, kwargs)

    return run


# ---- arguments ------------------------------------------------------------------------------------------------------------


class Arguments:
    """One call of a user's function: tensors among the leaves of its arguments, and which of them are differentiated."""

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: ArgNums | None,
        name: Any = None,
        everything: bool = False,
    ) -> None:
        self.fn, self.name = fn, name or fn
        self.leaves, self.structure = tree.flatten((tuple(args), kwargs))
        self.places = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor) or _is_array(x)]
        self.tensors = [as_tensor(self.leaves[i]) for i in self.places]
        self.position = {i: k for k, i in enumerate(self.places)}
        self.single = isinstance(argnums, int)
        self.argnums = () if argnums is None else (argnums,) if isinstance(argnums, int) else tuple(argnums)
        self.argnums = tuple(self._checked(n, len(args)) for n in self.argnums)
        bounds, at = [], 0
        for a in args:
            n = len(tree.flatten(a)[0])
            bounds.append((at, at + n))
            at += n
        # Per differentiated argument: its structure, and the position of each leaf among the tensors (None: no tensor).
        self.parts = []
        for n in self.argnums:
            lo, hi = bounds[n]
            self.parts.append((tree.flatten(args[n])[1], [self.position.get(i) for i in range(lo, hi)]))
        self.wrt = [k for _, ks in self.parts for k in ks if k is not None and self.tensors[k].dtype.is_float]
        for n, (_, ks) in zip(self.argnums, self.parts, strict=True):
            # Where all arguments are differentiated, nobody asked for those without floats: their derivatives are zeros.
            if not any(k in self.wrt for k in ks) and not (everything and self.wrt):
                self._refuse(n, ks)

    def _checked(self, n: int, count: int) -> int:
        if not -count <= n < count:
            raise error("FX0411", f"argnums names argument {n}, {function_name(self.fn)!r} is called with {count}", loc=here(),
                        help="arguments to differentiate are positional, counted from 0")  # fmt: skip
        return n % count

    def _refuse(self, n: int, ks: Sequence[int | None]) -> None:
        types = [str(self.tensors[k].type) for k in ks if k is not None]
        raise error("FX0411", f"argument {n} of {function_name(self.fn)!r} is {', '.join(types) or 'no tensor'}: "
                    "derivatives are taken with respect to floats", loc=here(),
                    help="convert it to a float type first, or name other arguments with argnums")  # fmt: skip

    def rebuild(self, xs: Sequence[Any]) -> Any:
        full = list(self.leaves)
        for i, x in zip(self.places, xs, strict=True):
            full[i] = x
        return self.structure.unflatten(full)

    def close(self, **attrs: Any) -> derived.Closed:
        return derived.close(self.fn, self.tensors, self.rebuild, name=self.name, **attrs)

    def gathered(self, values: Sequence[Tensor], front: Sequence[Dim] = ()) -> Any:
        """Values for `wrt` in the structure of the differentiated arguments; zeros for what is no float. `front`: axes that
        the values have before those of the arguments."""
        found = dict(zip(self.wrt, values, strict=True))

        def leaf(k: int | None) -> Any:
            if k is None:
                return None
            t = self.tensors[k]
            return found[k] if k in found else api_creation.zeros((*front, *t.shape), dtype=t.dtype)

        parts = [structure.unflatten([leaf(k) for k in ks]) for structure, ks in self.parts]
        return parts[0] if self.single else tuple(parts)


def _floats(types: Sequence[TensorType]) -> list[int]:
    return [j for j, t in enumerate(types) if t.dtype.is_float]


def matching(what: str, given: Any, structure: tree.TreeDef, types: Sequence[TensorType], names: str) -> list[Tensor]:
    """The leaves of `given` as tensors, which must have this structure and these types. FX0313, FX0412."""
    leaves, s = tree.flatten(given)
    tree.check_same(structure, s, names, what)
    out = []
    for path, x, t in zip(structure.paths(), leaves, types, strict=True):
        v = as_tensor(x)
        if v.weak or (isinstance(x, (int, float)) and not isinstance(x, np.generic)):
            v = api_manipulation.broadcast_to(v.astype(t.dtype), t.shape) if not v.ndim else v
        if (
            v.dtype != t.dtype
            or len(v.shape) != len(t.shape)
            or any(a != b for a, b in zip(v.shape, t.shape, strict=True))
        ):
            where = tree.path_text(path)
            raise error("FX0412", f"{what}{' at ' + where if where else ''} is {v.type}, it must be {t}", loc=here())
        out.append(v)
    return out


# ---- reverse mode ---------------------------------------------------------------------------------------------------------


def value_and_grad(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives `fun`'s value and its gradient.

    `fun` returns a float scalar, or with `has_aux` a pair of it and anything else. The gradient has the structure of the
    argument `argnums` (a tuple of them for several); leaves that are no floats get zeros. Reverse mode. FX0411 for a result
    that is not a float scalar, or an argument without floats.
    """

    @named_like(fun)
    @transforming
    def run(*args: Any, **kwargs: Any) -> Any:
        c = Arguments(fun, args, kwargs, argnums)
        f = c.close()
        value_tree = f.out_tree
        if has_aux:
            if f.out_tree.kind != "tuple" or len(f.out_tree.children) != 2:
                raise error("FX0411", f"with has_aux {f.fn_name!r} returns a pair (value, aux)", loc=here())
            value_tree = f.out_tree.children[0]
        if value_tree != tree.LEAF or f.types[0].shape or not f.types[0].dtype.is_float:
            shown = ", ".join(map(str, f.types)) or "nothing"
            raise error("FX0411", f"{f.fn_name!r} returns {shown}: a gradient is that of one float scalar", loc=here(),
                        help="reduce the result with fx.sum or fx.mean, or use fx.vjp or fx.jacrev")  # fmt: skip
        one = api_creation.ones((), dtype=f.types[0].dtype)
        results = derived.call_derived(f, c.tensors, "vjp", c.wrt, [0], [one])
        out = f.out_tree.unflatten(results[: len(f.types)])
        return out, c.gathered(results[len(f.types) :])

    return run


def grad(fun: Callable[..., Any], argnums: ArgNums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives the gradient of `fun` (with `has_aux`: a pair of it and the aux); see `value_and_grad`."""
    both = value_and_grad(fun, argnums, has_aux)

    @named_like(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, g = both(*args, **kwargs)
        return (g, value[1]) if has_aux else g

    return run


def vjp(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """`(out, vjp_fn)`: the result of `fun(*primals)`, and the function that takes a cotangent of it (of the same structure
    and types) to a tuple of cotangents of the primals. With `has_aux`: `(out, vjp_fn, aux)`."""
    if not is_tracing():
        if has_aux:
            out, aux = evaluate(fun, primals, {})
        else:
            out = evaluate(fun, primals, {})

        def later(ct: Any) -> Any:
            def go(ps: Any, d: Any) -> Any:
                return vjp(fun, *ps, has_aux=has_aux)[1](d)

            return go(primals, ct) if is_tracing() else evaluate(go, (primals, ct), {})

        return (out, later, aux) if has_aux else (out, later)
    c = Arguments(fun, primals, {}, tuple(range(len(primals))), everything=True)
    f = c.close()
    results = derived.call(f, c.tensors)
    whole = f.out_tree.unflatten(results)
    out, out_tree, count = whole, f.out_tree, len(f.types)
    if has_aux:
        out, aux = whole
        out_tree = f.out_tree.children[0]
        count = out_tree.leaf_count
    of = [j for j in _floats(f.types) if j < count]

    def pull(ct: Any) -> Any:
        given = matching("the cotangent", ct, out_tree, f.types[:count], f"the result of {f.fn_name!r}")
        return c.gathered(derived.call_derived(f, c.tensors, "pullback", c.wrt, of, [given[j] for j in of]))

    return (out, pull, aux) if has_aux else (out, pull)


# ---- forward mode -----------------------------------------------------------------------------------------------------------


@transforming
def jvp(fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """`(out, tangent_out)`: the result of `fun(*primals)` and its derivative in the direction `tangents`.

    `tangents` has the structure and types of `primals`; of what is no float the tangent is ignored.
    """
    primals, tangents = tuple(primals), tuple(tangents)
    c = Arguments(fun, primals, {}, tuple(range(len(primals))), everything=True)
    f = c.close()
    types = [t.type for t in c.tensors]
    whole = tree.flatten(primals)[1]
    given = matching("the tangent", tangents, whole, types, "the primals")
    of = _floats(f.types)
    results = derived.call_derived(f, c.tensors, "jvp", c.wrt, of, [given[k] for k in c.wrt])
    n = len(f.types)
    moved = dict(zip(of, results[n:], strict=True))
    ts = [moved[j] if j in moved else api_creation.zeros(t.shape, dtype=t.dtype) for j, t in enumerate(f.types)]
    return f.out_tree.unflatten(results[:n]), f.out_tree.unflatten(ts)


def linearize(fun: Callable[..., Any], *primals: Any) -> Any:
    """`(out, f_jvp)`: the result of `fun(*primals)` and the linear function `f_jvp(*tangents)` that gives its derivative."""
    if not is_tracing():
        return evaluate(fun, primals, {}), lambda *tangents: jvp(fun, primals, tangents)[1]
    out, _ = jvp(fun, primals, tree.map(lambda x: api_creation.zeros_like(x), primals))
    return out, lambda *tangents: jvp(fun, primals, tangents)[1]


def hvp(fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """The Hessian of the scalar function `fun` times a vector: forward over reverse, without the matrix."""

    def gradient(*xs: Any) -> Any:
        out, pull = vjp(fun, *xs)
        if tree.flatten(out)[1] != tree.LEAF or out.shape or not out.dtype.is_float:
            return grad(fun)(*xs)  # which refuses it
        return pull(api_creation.ones((), dtype=out.dtype))

    out = jvp(gradient, primals, tangents)[1]
    return out[0] if len(primals) == 1 else out


__all__ = ["evaluate", "grad", "hvp", "jvp", "linearize", "value_and_grad", "vjp"]
