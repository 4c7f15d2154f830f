"""Control flow of the program: `cond`, `switch`, `scan`, `while_loop`, `fori_loop`, `map`, with JAX's argument order.

Operands, carries, sequences and results are trees. A function given here is traced into a region; tensors of the
surrounding function that it uses are captured. Invariants: both branches give one structure and types (FX0212); a carry
keeps its structure and types (FX0213), except that a Python number as initial value takes the type of what the body
gives; errors name the path in the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.frontend import tree
from fluxir.frontend.api_manipulation import same_shape
from fluxir.frontend.tensor import (
    Tensor,
    as_tensor,
    binary,
    cast,
    constant,
    emit,
    is_scalar,
    promote_operands,
    result_dtype,
)
from fluxir.frontend.trace import (
    Region,
    close_regions,
    function_name,
    here,
    inside,
    is_ours,
    public,
    scope,
    trace_region,
)
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, Poly, maximum, require_equal
from fluxir.ir.dtypes import bool_, i64, scalar_dtype
from fluxir.ir.types import TensorType


def _leaves(what: str, x: Any) -> tuple[list[Tensor], tree.TreeDef]:
    """The leaves of a tree as tensors; FX0319 names the leaf that cannot be one."""
    items, structure = tree.flatten(x)
    out = []
    for path, leaf in zip(structure.paths(), items, strict=True):
        try:
            out.append(as_tensor(leaf))
        except FluxError as e:
            if e.code == "FX0229":
                name = tree.path_text(path, what)
                raise error(
                    "FX0319",
                    f"{name} is a {type(leaf).__name__}, not a tensor",
                    help="let the function close over it",
                    loc=here(),
                ) from None
            raise
    return out, structure


def _values(tensors: Sequence[Tensor]) -> list[Value]:
    s = scope()
    return [s.use(t.value, t.scope) for t in tensors]


def _emit(name: str, operands: Sequence[Value], blocks: Any, **attrs: Any) -> list[Tensor]:
    s = scope()
    return [Tensor(v, s) for v in s.emit(name, operands, blocks, attrs)]


def _staged(fn: Any) -> Any:
    """The user's function with its own control flow staged, as `fx.jit` does with the function it is given."""
    from fluxir.frontend.staging import staged  # it needs this module

    return staged(fn)


def _entered(e: BaseException) -> bool:
    """Whether the user's own code ran on the way to an exception."""
    tb = e.__traceback__
    while tb is not None and is_ours(tb.tb_frame.f_code):
        tb = tb.tb_next
    return tb is not None


def _call(what: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call the user's function; a wrong number of arguments is FX0319 with the function's name."""
    try:
        return fn(*args)
    except TypeError as e:
        if "positional argument" in str(e) and not _entered(e):
            raise error(
                "FX0319", f"{what} {function_name(fn)!r} is called with {len(args)} arguments: {e}", loc=here()
            ) from None
        raise


def _scalar_condition(what: str, x: Any) -> Tensor:
    t = as_tensor(x)
    if t.ndim:
        raise error(
            "FX0219",
            f"{what} has the shape [{','.join(str(d) for d in t.shape)}], not one truth value",
            help="reduce it with fx.all or fx.any, or choose element by element with fx.where",
            loc=here(),
        )
    return cast(t, bool_)


def _fit(x: Any, type_: TensorType) -> Tensor:
    """`x` with exactly `type_`, which it is known to fit: a number is cast, equal sizes written differently are renamed."""
    if is_scalar(x):
        return constant(x, scalar_dtype(x, type_.dtype) if type_.dtype != bool_ else bool_)
    t = as_tensor(x)
    t = cast(t, type_.dtype)
    return t if t.shape == type_.shape else emit("reshape", t, shape=type_.shape)


def _weak(x: Any) -> bool:
    return is_scalar(x) or isinstance(x, Poly) or isinstance(x, Tensor) and x.weak


def _is_data(x: Any) -> bool:
    return isinstance(x, Tensor | Poly) or is_scalar(x) or hasattr(x, "__array__") or hasattr(x, "__dlpack__")


def _shown(x: Any) -> str:
    return str(x.type) if isinstance(x, Tensor) else f"{type(x).__name__} {x!r}" if is_scalar(x) else type(x).__name__


# ---- branches -----------------------------------------------------------------------------------------------------------


@public
def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """`true_fn(*operands)` if the scalar `pred` holds, else `false_fn(*operands)`; only one of them runs.

    A Python bool decides while tracing. FX0219 for a condition of several elements, FX0212 where results differ.
    """
    if isinstance(pred, bool):
        return true_fn(*operands) if pred else false_fn(*operands)
    true_fn, false_fn = _staged(true_fn), _staged(false_fn)
    p = _scalar_condition("the condition of cond", pred)
    tensors, structure = _leaves("operand", operands)
    types, weak = [t.type for t in tensors], [t.weak for t in tensors]

    def run(what: str, fn: Callable[..., Any]) -> Region:
        return trace_region(types, lambda *xs: _call(what, fn, *structure.unflatten(xs)), weak=weak)

    regions = [run("the true function", true_fn), run("the false function", false_fn)]
    rebuild = unify_branches(regions, ("the true branch", "the false branch"))
    captured, blocks = close_regions(regions)
    return rebuild(_emit("if", [*_values([p, *tensors]), *captured], blocks))


def unify_branches(regions: Sequence[Region], names: Sequence[str]) -> Callable[[Sequence[Tensor]], Any]:
    """Set the `outs` of branches so that they agree; returns what turns the op's results into the result tree.

    Leaves that are no data (strings, functions) must be the same in all branches and pass by the program (FX0322).
    """
    flat = [tree.flatten(r.out, tree.is_static) for r in regions]
    tree.check_same(flat[0][1], flat[1][1], names[0], names[1], "FX0212")
    structure = flat[0][1]
    slots: list[tuple[bool, Any]] = []  # (is data, the static value or whether the result is weak)
    wrong: list[str] = []
    for path, *leaves in zip(structure.paths(), *[f[0] for f in flat], strict=True):
        where = f" at {tree.path_text(path)}" if path else ""
        if not all(_is_data(leaf) for leaf in leaves):
            a, b = leaves
            if a is not b and not (type(a) is type(b) and not _is_data(a) and a == b):
                raise error("FX0322", f"the branches give different Python values{where}: {_shown(a)} and {_shown(b)}",
                            help="only tensors and numbers can depend on a traced condition", loc=here())  # fmt: skip
            slots.append((False, a))
            continue
        ts = [x if is_scalar(x) else _in(r, x) for r, x in zip(regions, leaves, strict=True)]
        strong = [t for t in ts if not _weak(t)]
        shapes = [() if is_scalar(t) else t.shape for t in ts]
        try:
            dtype = result_dtype(*ts)
        except FluxError:
            dtype = strong[0].dtype
        if any(t.dtype != dtype for t in strong) or not same_shape(*shapes) or not _castable(ts, dtype):
            wrong.append(f"{_shown(ts[0])} and {_shown(ts[1])}{where}")
            continue
        for r, t in zip(regions, ts, strict=True):
            with inside(r) as s:
                v = _fit(t, TensorType(dtype, shapes[0]))
                r.outs.append(s.use(v.value, v.scope))
        slots.append((True, not strong and not shapes[0]))
    if wrong:
        raise error(
            "FX0212",
            f"the branches give different types: {'; '.join(wrong)}",
            help="bring both to one shape and dtype, for example with fx.broadcast_to or .astype",
            loc=here(),
        )

    def rebuild(results: Sequence[Tensor]) -> Any:
        data = iter(results)
        leaves = []
        for is_data, extra in slots:
            if is_data:
                t = next(data)
                t.weak = extra
                leaves.append(t)
            else:
                leaves.append(extra)
        return structure.unflatten(leaves)

    return rebuild


def _in(region: Region, x: Any) -> Tensor:
    with inside(region):
        return as_tensor(x)


def _castable(ts: Sequence[Any], dtype: Any) -> bool:
    try:
        for t in ts:
            if is_scalar(t):
                scalar_dtype(t, dtype)
            elif t.weak:
                rank = {"bool": 0, "int": 1, "uint": 1, "float": 2}
                if rank[t.dtype.kind] > rank[dtype.kind]:
                    return False
    except FluxError:
        return False
    return True


@public
def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`branches[index](*operands)`; an index out of range takes the nearest branch."""
    if not branches:
        raise error("FX0319", "switch needs at least one branch", loc=here())
    if isinstance(index, int):
        return branches[min(max(index, 0), len(branches) - 1)](*operands)
    i = as_tensor(index)
    if i.ndim or not i.dtype.is_integer:
        raise error("FX0219", f"the index of switch is an integer scalar, not {i.type}", loc=here())

    def choose(low: int, high: int, xs: tuple[Any, ...]) -> Any:
        if high - low == 1:
            return branches[low](*xs)
        middle = (low + high) // 2
        return cond(binary("lt", i, middle), lambda *x: choose(low, middle, x), lambda *x: choose(middle, high, x), *xs)

    return choose(0, len(branches), operands)


# ---- loops ----------------------------------------------------------------------------------------------------------------


def _carry_types(
    what: str, structure: tree.TreeDef, tensors: list[Tensor], region: Region, out: Any
) -> list[Tensor] | None:
    """Make the region yield the carry in the types it came in with.

    Returns None if it does, or new initial tensors where a Python number has to become what the body gives.
    """
    leaves, found = tree.flatten(out)
    tree.check_same(structure, found, f"the carry of {what}", "what the body returns", "FX0213")
    wrong: list[str] = []
    renewed = list(tensors)
    fitted: list[tuple[Any, TensorType]] = []
    for k, (path, t, x) in enumerate(zip(structure.paths(), tensors, leaves, strict=True)):
        if not _is_data(x):
            raise error(
                "FX0213",
                f"the carry of {what}: {tree.path_text(path, 'carry')} leaves as a {type(x).__name__}",
                loc=here(),
            )
        new = x if is_scalar(x) else _in(region, x)
        shape = () if is_scalar(new) else new.shape
        ok = same_shape(t.shape, shape)
        if ok and (_weak(new) and _castable([new], t.dtype) or not _weak(new) and new.dtype == t.dtype):
            fitted.append((new, t.type))
            if t.weak and not _weak(new):
                renewed[k] = Tensor(t.value, t.scope)  # from now on a tensor like any other
            continue
        if ok and t.weak:
            target = new.dtype if isinstance(new, Tensor) else result_dtype(new)
            if _castable([t], target):
                renewed[k] = cast(t, target)
                renewed[k].weak = _weak(new)
                continue
        wrong.append(f"{tree.path_text(path, 'carry')} enters as {t.type} and leaves as {_shown(new)}")
    if wrong:
        raise error(
            "FX0213",
            f"the carry of {what} changes its type: {'; '.join(wrong)}",
            help="start with the right type, or cast inside the body: what a loop hands on keeps its type and shape",
            loc=here(),
        )
    if any(a is not b for a, b in zip(renewed, tensors, strict=True)):
        return renewed
    with inside(region) as s:
        for new, type_ in fitted:
            v = _fit(new, type_)
            region.outs.append(s.use(v.value, v.scope))
    return None


def _pair(what: str, out: Any) -> tuple[Any, Any]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise error("FX0319", f"the body of {what} must return (carry, output), not {type(out).__name__}",
                    help="return carry, None if there is no output", loc=here())  # fmt: skip
    return out


@public
def scan(
    f: Callable[[Any, Any], Any], init: Any, xs: Any = None, length: Any = None, reverse: bool = False, unroll: int = 1
) -> tuple[Any, Any]:
    """A loop that carries state over the leading axis of `xs`: `carry, y = f(carry, x)` for each x; `(carry, ys stacked)`.

    Without `xs` the loop runs `length` times with x = None. `reverse` starts at the end; `unroll` is accepted and left to
    the compiler. FX0222 for sequences of different lengths, FX0213 for a carry that changes, FX0319 for a body that does
    not return a pair.
    """
    f = _staged(f)
    carry, structure = _leaves("init", init)
    sequences, x_structure = _leaves("xs", xs)
    n = _length(sequences, x_structure, length)
    slices = [TensorType(t.dtype, t.shape[1:]) for t in sequences]
    for _ in range(4):
        k = len(carry)

        def body(*args: Tensor, k: int = k) -> Any:
            return _pair("scan", _call("the body", f, structure.unflatten(args[:k]), x_structure.unflatten(args[k:])))

        region = trace_region([*[t.type for t in carry], *slices], body, weak=[t.weak for t in carry])
        renewed = _carry_types("scan", structure, carry, region, region.out[0])
        if renewed is None:
            break
        carry = renewed
    else:
        raise error(
            "FX0213",
            "the carry of scan finds no type that lasts",
            help="start with tensors of the right type",
            loc=here(),
        )
    with inside(region) as s:
        ys, y_structure = _leaves("output", region.out[1])
        region.outs += [s.use(y.value, y.scope) for y in ys]
    captured, blocks = close_regions([region], len(carry))
    results = _emit(
        "scan",
        [*_values(carry), *captured, *_values(sequences)],
        blocks,
        carry=len(carry),
        consts=len(captured),
        reverse=reverse,
        length=n if not sequences else None,
    )
    for r, t in zip(results, carry, strict=False):
        r.weak = t.weak
    return structure.unflatten(results[: len(carry)]), y_structure.unflatten(results[len(carry) :])


def _length(sequences: Sequence[Tensor], structure: tree.TreeDef, length: Any) -> Dim:
    n: Dim | None = None
    first = ""
    if length is not None:
        from fluxir.frontend.api_creation import as_shape

        (n,), first = as_shape(length), "the length"
    for path, t in zip(structure.paths(), sequences, strict=True):
        name = tree.path_text(path, "xs")
        if not t.ndim:
            raise error("FX0222", f"scan: {name} is a scalar and has no leading axis", loc=here())
        if n is None:
            n, first = t.shape[0], f"{name}, axis 0"
        elif not require_equal(n, t.shape[0]):
            raise error("FX0222", f"scan: {n} ({first}) is not {t.shape[0]} ({name}, axis 0)", loc=here())
    if n is None:
        raise error("FX0222", "scan needs a sequence or a length", help="give xs, or length=n", loc=here())
    return n


@public
def while_loop(cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init: Any) -> Any:
    """`val = init; while cond_fun(val): val = body_fun(val)`; the last value, a tree of constant structure and types."""
    cond_fun, body_fun = _staged(cond_fun), _staged(body_fun)
    carry, structure = _leaves("init", init)
    for _ in range(4):
        types, weak = [t.type for t in carry], [t.weak for t in carry]
        body = trace_region(types, lambda *xs: _call("the body", body_fun, structure.unflatten(xs)), weak=weak)
        renewed = _carry_types("while_loop", structure, carry, body, body.out)
        if renewed is None:
            break
        carry = renewed
    else:
        raise error(
            "FX0213",
            "the carry of while_loop finds no type that lasts",
            help="start with tensors of the right type",
            loc=here(),
        )
    test = trace_region(types, lambda *xs: _call("the condition", cond_fun, structure.unflatten(xs)), weak=weak)
    with inside(test) as s:
        p = _scalar_condition("the condition of while_loop", test.out)
        test.outs.append(s.use(p.value, p.scope))
    captured, blocks = close_regions([test, body])
    results = _emit("while", [*_values(carry), *captured], blocks, carry=len(carry))
    for r, t in zip(results, carry, strict=True):
        r.weak = t.weak
    return structure.unflatten(results)


@public
def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Any, Any], Any], init_val: Any) -> Any:
    """`for i in range(lower, upper): val = body_fun(i, val)`; bounds are integers, sizes or integer scalar tensors.

    Bounds that are known when tracing (or sizes) make a `scan`, which can be differentiated; others a `while`.
    """
    body_fun = _staged(body_fun)
    if not isinstance(lower, Tensor) and not isinstance(upper, Tensor):
        from fluxir.frontend.api_creation import as_shape

        low = lower if isinstance(lower, Poly) else lower.__index__()
        high = upper if isinstance(upper, Poly) else upper.__index__()
        span = high - low
        (n,) = as_shape(max(span, 0) if isinstance(span, int) else maximum(span, 0))
        start = as_counter(promote_operands(constant(0, i64), low)[1])

        def step(carry: Any, _: Any) -> Any:
            i, val = carry
            return (i + 1, _call("the body", body_fun, i, val)), None

        return scan(step, (start, init_val), None, length=n)[0][1]
    a, b = promote_operands(lower, upper)
    if a.ndim or b.ndim or not a.dtype.is_integer:
        raise error("FX0302", f"the bounds of fori_loop are integer scalars, not {a.type} and {b.type}", loc=here())
    a = as_counter(a)
    return while_loop(lambda c: c[0] < b, lambda c: (c[0] + 1, _call("the body", body_fun, *c)), (a, init_val))[1]


def as_counter(t: Tensor) -> Tensor:
    """A loop counter: like a Python integer it takes the type of the tensor it meets."""
    return Tensor(t.value, t.scope, weak=True)


@public
def map(f: Callable[[Any], Any], xs: Any) -> Any:
    """`f` of each slice along the leading axis of `xs`, the results stacked; one after the other."""
    f = _staged(f)
    return scan(lambda carry, x: (carry, f(x)), (), xs)[1]


__all__ = [
    "cond", "fori_loop", "map", "scan", "switch", "while_loop",
]  # fmt: skip
