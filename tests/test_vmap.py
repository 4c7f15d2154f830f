"""`fx.vmap` against a Python loop: every op from its samples, each form of control flow, in any nesting with derivatives.

`check` maps a function written with `fx` over the first axis of some arguments and compares with calling it for each; values,
gradients, second derivatives and nested maps, interpreted and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver
from fluxir.driver import DERIVE, run_passes
from fluxir.errors import FluxError
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Block, Func, Module, Value
from fluxir.ir.dims import Dim, symbol
from fluxir.ir.interp import interpret
from fluxir.ir.opdef import OpDef, Sample
from fluxir.ir.types import TensorType, tensor
from fluxir.ir.verify import verify_module
from fluxir.ops.control import Transform
from tests.op_harness import CASES, OPS, assert_close, inputs_of, program

LANES = 3

# ---- every op ---------------------------------------------------------------------------------------------------------------


def batched(defn: OpDef, case: Sample, flags: Sequence[bool], size: Dim) -> Module:
    """The module that is this op over an axis of `size` on the flagged operands, as a transform that is not resolved yet."""
    types = [tensor(t) for t in case.types]
    f = build_func("f", types, lambda b, *xs: b.emit(defn.name, *xs, **case.attrs))
    args = [
        Value(t.with_shape((size, *t.shape)) if flag else t, None, i, f"x{i}")
        for i, (t, flag) in enumerate(zip(types, flags, strict=True))
    ]
    b = Builder()
    t = Transform("batch", tuple(i for i, flag in enumerate(flags) if flag))
    results = tuple(TensorType(v.type.dtype, (size, *v.type.shape)) for v in f.outs)
    outs = b.emit("call", *args, callee="f", results=results, transform=str(t))
    return Module("m", {"main": Func("main", Block(args, b.ops, outs)), "f": f})


def choices(count: int) -> list[tuple[bool, ...]]:
    """Every operand alone, and all of them."""
    alone = [tuple(i == k for i in range(count)) for k in range(count)]
    return list(dict.fromkeys([*alone, (True,) * count]))


def compare(defn: OpDef, case: Sample, got: Sequence[Any], one: Module, lanes: Sequence[Sequence[Any]]) -> None:
    wanted = [interpret(one, xs) for xs in lanes]
    assert len(got) == len(one.entry.outs)
    for k, result in enumerate(got):
        assert_close(result, np.stack([w[k] for w in wanted]), defn, case)


def lane_inputs(case: Sample, flags: Sequence[bool]) -> tuple[list[Any], list[list[Any]]]:
    """Operands with a batch axis where flagged, and those of each lane."""
    drawn = [inputs_of(case, seed) for seed in range(LANES)]
    whole = [np.stack([d[i] for d in drawn]) if flag else drawn[0][i] for i, flag in enumerate(flags)]
    return whole, [[x[n] if flag else x for x, flag in zip(whole, flags, strict=True)] for n in range(LANES)]


@pytest.mark.parametrize(("defn", "case"), CASES)
def test_every_op(defn: OpDef, case: Sample) -> None:
    if not case.types:
        return
    one = program(defn, case)
    for flags in choices(len(case.types)):
        whole, lanes = lane_inputs(case, flags)
        m, _ = run_passes(batched(defn, case, flags, LANES), DERIVE, verify="changed")
        compare(defn, case, interpret(m, whole), one, lanes)


@pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS if d.samples and d.samples[0].types])
def test_every_op_in_a_batch_of_symbolic_size(defn: OpDef) -> None:
    case = defn.samples[0]
    one = program(defn, case)
    for flags in choices(len(case.types)):
        whole, lanes = lane_inputs(case, flags)
        m, _ = run_passes(batched(defn, case, flags, symbol("S")), DERIVE, verify="changed")
        compare(defn, case, interpret(m, whole), one, lanes)
        nobody = [x[:0] if flag else x for x, flag in zip(whole, flags, strict=True)]
        assert [r.shape[0] for r in interpret(m, nobody)] == [0] * len(one.entry.outs)


@pytest.mark.deep
@pytest.mark.parametrize(("defn", "case"), CASES)
def test_every_op_compiled(defn: OpDef, case: Sample) -> None:
    if not case.types:
        return
    flags = (True,) * len(case.types)
    whole, lanes = lane_inputs(case, flags)
    built = driver.Lowered(batched(defn, case, flags, LANES)).compile()
    compare(defn, case, as_list(built(*whole)), program(defn, case), lanes)


def as_list(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (tuple, list)) else [x]


# ---- control flow -----------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3))
W = 0.3 * RNG.standard_normal((3, 3))
WS = 0.3 * RNG.standard_normal((5, 3, 3))


def looped(f: Callable[..., Any], args: Sequence[Any], in_axes: Sequence[int | None]) -> list[Any]:
    """The leaves of the results of `f` for each place of the first axes, stacked."""
    n = next(a.shape[0] for a, axis in zip(args, in_axes, strict=True) if axis == 0)
    each = [f(*[a[k] if axis == 0 else a for a, axis in zip(args, in_axes, strict=True)]) for k in range(n)]
    return [np.stack(parts) for parts in zip(*[fx.tree.leaves(r) for r in each], strict=True)]


def close(got: Any, want: Any, tol: float = 1e-9) -> None:
    got, want = fx.tree.leaves(got), fx.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def check(f: Callable[..., Any], *args: Any, in_axes: Sequence[int | None] = (0, None), compiled: bool = True) -> None:
    """The scalar function `f(x, w)`, its gradients and their gradients over a batch; the gradient of the whole batch."""
    in_axes = in_axes[: len(args)]
    argnums = tuple(range(len(args)))

    def slope(*a: Any) -> Any:
        return sum(fx.sum(d * d) for d in fx.grad(f, argnums)(*a))

    for g in (f, fx.grad(f, argnums), fx.grad(slope, argnums)):
        mapped = fx.vmap(g, tuple(in_axes))
        want = looped(g, args, in_axes)
        close(mapped(*args), want)
        if compiled:
            close(fx.jit(mapped)(*args), want)
    each = looped(fx.grad(f, argnums), args, in_axes)
    want = [g if axis == 0 else g.sum(0) for g, axis in zip(each, in_axes, strict=True)]

    def total(*a: Any) -> Any:
        return fx.sum(fx.vmap(f, tuple(in_axes))(*a))

    close(fx.grad(total, argnums)(*args), want)
    tangents = tuple(np.cos(a) for a in args)
    moved = fx.jvp(fx.vmap(f, tuple(in_axes)), args, tangents)[1]
    shares = [g * (t if axis == 0 else t[None]) for g, t, axis in zip(each, tangents, in_axes, strict=True)]
    close(moved, sum(s.reshape(len(s), -1).sum(1) for s in shares))


@fx.function
def branches(x, w):
    if fx.sum(x) > 0:
        return fx.sum(fx.tanh(w @ x))
    else:
        y = fx.sin(w @ x) * x
        return fx.sum(y * y)


@fx.function
def dangerous(x, w):
    """In the lanes that do not take it, the branch has a derivative that is infinite."""
    y = x[0]
    if y > 0:
        r = fx.log(y) * fx.sqrt(y)
    else:
        r = y * y
    return r * fx.sum(w)


@fx.function
def dangerous_shared(x, w):
    y = x[0]
    if y > 0:
        r = fx.sum((fx.abs(w) + 1) ** fx.log(y)) * fx.log(y)
    else:
        r = fx.sum(w) * y
    return r


@fx.function
def shared_branch(x, w):
    if fx.sum(w) > 0:
        r = fx.sum(x * 2)
    else:
        r = fx.sum(w @ x)
    return r


@fx.function
def over_sequence(x, w):
    h = x * 0
    out = 0.0
    for i in range(4):
        h = fx.tanh(w @ h + x * i)
        out = out + fx.sum(h)
    return out


def stacked(x, w):
    def step(h, u):
        h = fx.tanh(w @ h + u)
        return h, fx.sum(h * u)

    h, ys = fx.scan(step, w[0], x)
    return fx.sum(h) + fx.sum(ys * x)


def backwards(x, w):
    def step(h, u):
        return h * 0.5 + u, h * u

    h, ys = fx.scan(step, x[0], (w @ x), reverse=True)
    return h + fx.sum(ys)


@fx.function
def until_small(x, w):
    h = x
    while fx.sum(h * h) > 0.01:
        h = 0.5 * fx.tanh(w @ h)
    return fx.sum(h * x)


@fx.function
def shared_count(x, w):
    h = x
    n = fx.sum(w * w)
    while n > 0.1:
        h = fx.sin(w @ h) + x
        n = n * 0.5
    return fx.sum(h)


@fx.function
def loop_in_loop(x, w):
    h = x
    while fx.sum(h * h) > 0.05:
        j = fx.sum(fx.abs(h))
        while j > 0.3:
            h = h * fx.cos(h) * 0.8
            j = j * 0.5
        h = fx.tanh(w @ h) * 0.7
    return fx.sum(h * x)


@fx.function
def loop_in_branch(x, w):
    h = x
    if x[0] > 0.1:
        while fx.sum(h * h) > 0.02:
            h = fx.tanh(w @ h) / (1 + fx.abs(x[0]))
    else:
        h = fx.exp(h) * 0.1
    return fx.sum(h)


@fx.function
def branch_in_loop(x, w):
    h = x
    n = 0
    while fx.sum(h * h) > 0.01:
        if h[0] > 0:
            h = fx.sqrt(h[0] + 0.1) * fx.tanh(w @ h)
        else:
            h = 0.4 * fx.sin(h)
        n = n + 1
        if n > 6:
            break
    return fx.sum(h * h) + n


@fx.function
def ends_badly(x, w):
    """The body has an infinite derivative where a lane has finished."""
    h = fx.abs(x[0])
    s = 0.0
    while h > 0.5:
        s = s + fx.log(h - 0.5) * fx.sum(w)
        h = fx.maximum(h - 0.5, 0.5) * 0.9 + 0.05
    return s + h


@fx.function
def power(x, n):
    if n <= 0:
        return x * 0 + 1
    return x * power(x, n - 1)


@fx.function
def recursion(x, w):
    n = fx.astype(fx.floor(fx.abs(x[0]) * 4), fx.i64)
    return fx.sum(power(x, n) * w[0])


@fx.function
def recursion_of_shared_depth(x, w):
    return fx.sum(power(x, fx.astype(fx.sum(w) * 0, fx.i64) + 3) * w[0])


@fx.function
def early_return(x, w):
    for i in range(3):
        if x[i] < 0:
            return fx.sum(w @ x) * (i + 1)
    return fx.sum(x)


CONTROL = [
    branches, dangerous, dangerous_shared, shared_branch, over_sequence, stacked, backwards, until_small, shared_count,
    loop_in_loop, loop_in_branch, branch_in_loop, ends_badly, recursion, recursion_of_shared_depth, early_return,
]  # fmt: skip


@pytest.mark.parametrize("f", [pytest.param(f, id=f.__name__) for f in CONTROL])
@pytest.mark.parametrize("in_axes", [(0, None), (0, 0)], ids=["shared", "both"])
def test_control_flow(f: Callable[..., Any], in_axes: tuple[int | None, ...]) -> None:
    check(f, X, W if in_axes[1] is None else WS, in_axes=in_axes, compiled=in_axes[1] is None)


def test_finished_lanes_share_one_loop() -> None:
    """The reverse of a loop whose lanes run for different numbers of rounds is one loop for all of them."""
    text = fx.jit(fx.vmap(fx.grad(until_small), (0, None))).lower(fx.f64["B", 3], fx.f64[3, 3]).as_text("adjoint")
    assert text.count(" scan(") == 2 and text.count(" while(") == 1 and "gather" not in text


def test_an_assertion_holds_for_the_lanes_that_reach_it() -> None:
    @fx.function
    def f(x):
        if x > 0:
            assert x < 2, "too large"
            y = fx.sqrt(x)
        else:
            y = x
        return y

    x = np.array([-3.0, 1.0, 0.25, -1.0])
    close(fx.vmap(f)(x), looped(f, (x,), (0,)))
    close(fx.jit(fx.vmap(f))(x), looped(f, (x,), (0,)))
    with pytest.raises(FluxError, match="too large"):
        fx.vmap(f)(np.array([-3.0, 1.0, 4.0]))
    with pytest.raises(FluxError, match="too large"):
        fx.jit(fx.vmap(f))(np.array([-3.0, 1.0, 4.0]))


def test_a_length_that_differs_between_lanes_and_shapes_more_than_loops() -> None:
    """Sums over an axis of such a length cannot be shared by lanes: they run one by one."""
    from fluxir.ir.parser import parse_module

    m = parse_module(
        """module @m
func @main(%n: i64[4], %x: f64[4]) -> (y: f64[4]) {
  %0 = call(%n, %x) [callee="f", results=(!f64[4],), transform="batch[0,1;]"] : f64[4]
  return %0
}
func @f(%n: i64, %x: f64) -> (y: f64) {
  %0 = call(%n, %x) [callee="g", results=(!f64[],), sized=(("N", 0),)] : f64
  return %0
}
func @g(%n: i64, %x: f64) -> (y: f64) {
  %0 = broadcast(%x) [shape=(<N>,), axes=()] : f64[N]
  %1 = cos(%0) : f64[N]
  %2 = sum(%1) [axes=(0,)] : f64
  return %2
}
"""
    )
    n, x = np.array([3, 0, 5, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    out, _ = run_passes(m, DERIVE)
    verify_module(out)
    np.testing.assert_allclose(interpret(out, [n, x])[0], n * np.cos(x))


# ---- nesting ----------------------------------------------------------------------------------------------------------------

X3 = RNG.standard_normal((2, 5, 3))


def nested(f: Callable[..., Any], x: Any, w: Any) -> Any:
    return np.stack([np.stack([f(v, w) for v in row]) for row in x])


@pytest.mark.parametrize(
    "f", [pytest.param(f, id=f.__name__) for f in (branches, loop_in_branch, until_small, recursion)]
)
def test_maps_in_maps(f: Callable[..., Any]) -> None:
    twice = fx.vmap(fx.vmap(f, (0, None)), (0, None))
    close(twice(X3, W), [nested(f, X3, W)])
    close(fx.jit(twice)(X3, W), [nested(f, X3, W)])
    g = fx.grad(f)
    close(fx.vmap(fx.vmap(g, (0, None)), (0, None))(X3, W), [nested(g, X3, W)])
    middle = fx.vmap(fx.grad(lambda x, w: fx.sum(fx.vmap(f, (0, None))(x, w))), (0, None))
    close(middle(X3, W), [nested(g, X3, W)])
    outer = fx.grad(lambda x, w: fx.sum(twice(x, w)))
    close(outer(X3, W), [nested(g, X3, W)])
    # A different batch inside: every x with every w.
    pairs = fx.vmap(lambda x: fx.vmap(lambda w: f(x, w))(WS))(X)
    close(pairs, [np.stack([np.stack([f(v, w) for w in WS]) for v in X])])


def test_jit_inside_and_outside() -> None:
    inner = fx.jit(until_small)
    want = looped(until_small, (X, W), (0, None))
    close(fx.vmap(lambda x: inner(x, W))(X), want)
    close(fx.jit(fx.vmap(lambda x: inner(x, W)))(X), want)
    close(fx.jit(lambda x: fx.vmap(lambda v: fx.jit(fx.vmap(fx.sin))(v) * 2)(x))(X), [np.sin(X) * 2])


@pytest.mark.parametrize("f", [pytest.param(f, id=f.__name__) for f in (stacked, branches, until_small, recursion)])
def test_symbolic_sizes(f: Callable[..., Any]) -> None:
    program = fx.jit(fx.vmap(fx.value_and_grad(f), (0, None))).lower(fx.f64["B", 3], fx.f64[3, 3]).compile()
    for n in (1, 2, 5):
        want = looped(fx.value_and_grad(f), (X[:n], W), (0, None))
        close(program(X[:n], W), want)
    value, grad = program(X[:0], W)
    assert value.shape == (0,) and grad.shape == (0, 3)


def test_a_batch_of_nothing() -> None:
    for f in (branches, until_small, loop_in_branch, recursion):
        assert fx.vmap(f, (0, None))(X[:0], W).shape == (0,)
        assert fx.vmap(fx.grad(f), (0, None))(X[:0], W).shape == (0, 3)


def test_rules_of_the_user() -> None:
    @fx.custom_vjp
    def clipped(x, w):
        return fx.sin(x) * w

    clipped.defvjp(
        lambda x, w: (clipped(x, w), (x, w)), lambda kept, ct: (fx.clip(ct * fx.cos(kept[0]) * kept[1], -1, 1), ct * 7)
    )

    @fx.custom_jvp
    def doubled(x, w):
        return fx.tanh(x) * w

    @doubled.defjvp
    def rule(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        return doubled(x, w), 2 * dx * w + dw

    remade = fx.checkpoint(lambda x, w: fx.sin(w @ x))
    v, u = X[:, 0], np.float64(1.5)
    for f in (clipped, doubled):
        for g in (f, fx.grad(f, (0, 1))):
            close(fx.vmap(g, (0, None))(v, u), looped(g, (v, u), (0, None)))
            close(fx.jit(fx.vmap(g, (0, None)))(v, u), looped(g, (v, u), (0, None)))
        each = looped(fx.grad(f, (0, 1)), (v, u), (0, None))
        whole = fx.grad(lambda x, w, f=f: fx.sum(fx.vmap(f, (0, None))(x, w)), (0, 1))(v, u)
        close(whole, [each[0], each[1].sum(0)])
    check(lambda x, w: fx.sum(remade(x, w) * x), X, W)


def test_maps_inside_control_flow() -> None:
    @fx.function
    def rows(x, n):
        if n <= 0:
            return fx.vmap(lambda v: v * fx.sum(v))(x)
        return fx.vmap(fx.tanh)(rows(x, n - 1))

    @fx.function
    def f(x, w):
        def step(h, u):
            return fx.vmap(lambda a: fx.tanh(w @ a) * u)(h), fx.sum(h)

        h, ys = fx.scan(step, fx.stack([x, x * 2]), x)
        while fx.sum(h * h) > 0.01:
            h = fx.vmap(until_small, (0, None))(h, w)[:, None] * h
        return fx.sum(h) + fx.sum(ys) + fx.sum(rows(fx.stack([x, x]), fx.astype(x[0] * 0 + 2, fx.i64)))

    check(f, X, W)


def test_whole_numbers_divided_in_a_branch_not_taken() -> None:
    @fx.function
    def f(m, n):
        if n != 0:
            r = m // n + m % n
        else:
            r = m
        return r

    m, n = np.array([7, -7, 5, 9]), np.array([2, 0, -3, 0])
    for g in (fx.vmap(f), fx.jit(fx.vmap(f))):
        close(g(m, n), looped(f, (m, n), (0, 0)))


def test_a_batch_named_like_a_size_of_the_callee() -> None:
    """`N` is another size in the function that is called."""
    from fluxir.ir.parser import parse_module

    m = parse_module(
        """module @m
func @main(%x: f64[N,4]) -> (y: f64[N]) {
  %0 = call(%x) [callee="f", results=(!f64[N],), transform="batch[0;]"] : f64[N]
  return %0
}
func @f(%x: f64[4]) -> (y: f64) {
  %0 = call(%x) [callee="g", results=(!f64[],), dims=(("N", 4),)] : f64
  return %0
}
func @g(%x: f64[N]) -> (y: f64) {
  %0 = iota [shape=(<N>,), axis=0, dtype=!f64] : f64[N]
  %1 = mul(%0, %x) : f64[N]
  %2 = sum(%1) [axes=(0,)] : f64
  return %2
}
"""
    )
    out, _ = run_passes(m, DERIVE)
    verify_module(out)
    x = RNG.standard_normal((3, 4))
    np.testing.assert_allclose(interpret(out, [x])[0], x @ np.arange(4))


def test_gradients_of_each_example() -> None:
    """A model's gradient for each example of a batch: matrix products stay matrix products."""

    def loss(p, x, y):
        h = fx.maximum(x @ p["w1"] + p["b1"], 0)
        return fx.mean((h @ p["w2"] - y) ** 2)

    p = {"w1": RNG.standard_normal((3, 4)), "b1": RNG.standard_normal(4), "w2": RNG.standard_normal((4, 2))}
    y = RNG.standard_normal((5, 2))
    each = fx.vmap(fx.grad(loss), (None, 0, 0))
    want = [fx.grad(loss)(p, X[k], y[k]) for k in range(5)]
    close(each(p, X, y), list(fx.tree.leaves(fx.tree.map(lambda *xs: np.stack(xs), *want))))
    lowered = fx.jit(each).lower(p, fx.f64["B", 3], fx.f64["B", 2])
    assert "scan(" not in lowered.as_text("fused")
    close(lowered.compile()(p, X, y), each(p, X, y))
    assert ".visible .entry" in lowered.as_text("ptx")


def test_random_numbers_are_those_of_each_key() -> None:
    keys = fx.random.split(fx.random.key(7), 4)
    for draw in (
        lambda k: fx.random.normal(k, (3,)),
        lambda k: fx.random.bits(k, (2, 3), dtype="u64"),
        lambda k: fx.random.uniform(fx.random.fold_in(k, 3), (5,)),
        lambda k: fx.random.permutation(k, 6),
        lambda k: fx.random.split(k),
    ):
        want = np.stack([draw(k) for k in keys])
        np.testing.assert_array_equal(fx.vmap(draw)(keys), want)
        one = fx.jit(draw)  # compiled functions of floats round differently from numpy's
        np.testing.assert_array_equal(fx.jit(fx.vmap(draw))(keys), np.stack([one(k) for k in keys]))


def test_linear_algebra() -> None:
    a = RNG.standard_normal((4, 3, 3)) + 3 * np.eye(3)
    v = RNG.standard_normal((4, 3))
    np.testing.assert_allclose(fx.vmap(fx.linalg.inv)(a), np.linalg.inv(a), rtol=1e-9)
    np.testing.assert_allclose(fx.vmap(fx.linalg.solve)(a, v), np.linalg.solve(a, v[..., None])[..., 0], rtol=1e-9)
    np.testing.assert_allclose(fx.vmap(fx.linalg.det)(a), np.linalg.det(a), rtol=1e-9)
    got = fx.vmap(fx.grad(lambda m: fx.linalg.slogdet(m)[1]))(a)
    np.testing.assert_allclose(got, np.linalg.inv(a).transpose(0, 2, 1), rtol=1e-8)


# ---- arguments and results ------------------------------------------------------------------------------------------------


def test_axes_in_and_out() -> None:
    x, y = RNG.standard_normal((2, 5, 3)), RNG.standard_normal((3, 5))
    close(fx.vmap(lambda a, b: a + b, (1, -1), -1)(x, y), [np.stack([x[:, k] + y[:, k] for k in range(5)], -1)])
    tree_in = {"a": x, "b": (y, 2.0)}
    got = fx.vmap(lambda p, s: {"sum": p["a"] * s + p["b"][1], "b": p["b"][0], "s": s},
                  ({"a": 1, "b": (1, None)}, None), {"sum": 1, "b": 0, "s": None})(tree_in, 3.0)  # fmt: skip
    np.testing.assert_allclose(got["sum"], x.transpose(1, 0, 2).swapaxes(0, 1) * 3 + 2)
    np.testing.assert_allclose(got["b"], y.T)
    assert got["s"].shape == () and got["s"] == 3
    close(fx.vmap(lambda p: p["a"] + 1, ({"a": 2, "b": None},))(tree_in), [x.transpose(2, 0, 1) + 1])
    close(fx.vmap(lambda a, k=None: a * k)(y, k=y), [y * y])
    close(fx.vmap(lambda: fx.ones((2,)) * 3, axis_size=4)(), [np.full((4, 2), 3.0)])
    close(fx.vmap(lambda a: a, in_axes=None, axis_size=2)(y), [np.stack([y, y])])
    close(fx.vmap(lambda a, b: a, (0, None))(y, 1.0), [y])


def test_results_that_are_the_same_for_all_calls() -> None:
    same = fx.vmap(lambda a, b: (a * b, fx.sum(b)), (0, None), (0, None))
    got = same(X, X[0])
    np.testing.assert_allclose(got[1], X[0].sum())


X2 = np.ones((3, 2))
ERRORS = [
    (lambda: fx.vmap(fx.sin)(1.0), "axis 0 of .* is mapped, which is f32"),
    (lambda: fx.vmap(lambda first, second: first, (0, 2))(X2, X2), "axis 2 of second is mapped, which is f64.3,2."),
    (lambda: fx.vmap(lambda a, b: a + b)(X2, np.ones(4)), "3 .axis 0 of a. is not 4 .axis 0 of b"),
    (lambda: fx.vmap(lambda p: p["u"])({"u": X2, "v": np.ones(4)}), "axis 0 of p.u. is not 4 .axis 0 of p.v"),
    (lambda: fx.vmap(lambda a: a, None)(X2), "no argument is mapped"),
    (lambda: fx.vmap(lambda a: a, (0, 0))(X2), "in_axes of .* does not fit"),
    (lambda: fx.vmap(lambda a: a, ({"x": 0},))({"y": X2}), "does not fit at 0: it is"),
    (lambda: fx.vmap(lambda a: a, "first")(X2), "an axis is an integer or None, not 'first'"),
    (lambda: fx.vmap(lambda a: a, 0, 2)(X2), "out_axes is 2 for the result, which is f64.3,2."),
    (lambda: fx.vmap(lambda a: (a, 1.0), 0, (None, None))(X2), "out_axes is None for the result at 0, which differs"),
    (lambda: fx.vmap(lambda a: a, 0, (0, 0))(X2), "out_axes of .* does not fit"),
    (lambda: fx.vmap(lambda a: a, axis_size=4)(X2), "4 .axis_size. is not 3"),
]


@pytest.mark.parametrize(("run", "message"), ERRORS)
def test_errors(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(FluxError, match=message) as e:
        run()
    assert e.value.code == "FX0414"


# ---- Jacobians --------------------------------------------------------------------------------------------------------------


def differences(f: Callable[[Any], Any], x: Any, eps: float = 1e-6) -> Any:
    """The Jacobian of `f` at `x` by central differences: [*result, *x]."""
    columns = []
    for i in np.ndindex(*x.shape):
        lo, hi = x.copy(), x.copy()
        lo[i] -= eps
        hi[i] += eps
        columns.append((np.asarray(f(hi)) - np.asarray(f(lo))) / (2 * eps))
    return np.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


@pytest.mark.parametrize("jac", [fx.jacrev, fx.jacfwd, fx.jacobian], ids=lambda f: f.__name__)
def test_jacobians(jac: Any) -> None:
    def f(x, w):
        return fx.tanh(w @ x) * x[0]

    close(jac(f)(X[0], W), [differences(lambda x: f(x, W), X[0])], 1e-7)
    close(jac(f, 1)(X[0], W), [differences(lambda w: f(X[0], w), W)], 1e-7)
    close(fx.jit(jac(f, (0, 1)))(X[0], W), list(jac(f, (0, 1))(X[0], W)))
    close(fx.vmap(jac(f), (0, None))(X, W), looped(jac(f), (X, W), (0, None)))

    def of_trees(p, n):
        return {"y": p["a"] * p["b"][0][0], "z": fx.sum(p["a"]) * n}, (n, fx.sum(p["a"]))

    p = {"a": X[0], "b": (np.array([2.0, 3.0]),), "n": np.array([1, 2])}
    got, aux = jac(of_trees, has_aux=True)(p, 2.0)
    assert got["y"]["a"].shape == (3, 3) and got["y"]["b"][0].shape == (3, 2) and got["z"]["a"].shape == (3,)
    assert got["y"]["n"].shape == (3, 2) and got["y"]["n"].dtype == np.int64 and not got["y"]["n"].any()
    np.testing.assert_allclose(got["y"]["a"], 2 * np.eye(3))
    np.testing.assert_allclose(got["y"]["b"][0], np.stack([X[0], 0 * X[0]], 1))
    np.testing.assert_allclose(got["z"]["a"], [2.0, 2.0, 2.0])
    np.testing.assert_allclose(aux[1], X[0].sum())
    with pytest.raises(FluxError, match="a Jacobian is that of floats") as e:
        jac(lambda x: fx.astype(x, fx.i32))(X[0])
    assert e.value.code == "FX0411"


@pytest.mark.parametrize("f", [pytest.param(f, id=f.__name__) for f in (branches, until_small, recursion)])
def test_hessians(f: Callable[..., Any]) -> None:
    want = differences(lambda x: fx.grad(f)(x, W), X[0])
    close(fx.hessian(f)(X[0], W), [want], 1e-6)
    close(fx.jacrev(fx.jacfwd(f))(X[0], W), [want], 1e-6)
    close(fx.jit(fx.hessian(f))(X[0], W), [fx.hessian(f)(X[0], W)])
    blocks = fx.hessian(f, (0, 1))(X[0], W)
    assert blocks[0][1].shape == (3, 3, 3) and blocks[1][0].shape == (3, 3, 3) and blocks[1][1].shape == (3, 3, 3, 3)
    np.testing.assert_allclose(blocks[0][1], blocks[1][0].transpose(2, 0, 1), rtol=1e-9, atol=1e-12)


def test_jacobian_of_symbolic_size() -> None:
    program = fx.jit(fx.jacfwd(lambda x: fx.cumsum(x * x))).lower(fx.f64["N"]).compile()
    np.testing.assert_allclose(program(np.array([1.0, 2.0, 3.0])), np.tril(np.ones((3, 3))) * [2, 4, 6])


# ---- check_grads ------------------------------------------------------------------------------------------------------------


def test_check_grads() -> None:
    fx.check_grads(lambda x, w: fx.tanh(w @ x), (X[0], W), order=3)
    fx.check_grads(until_small, (X[0], W))
    fx.check_grads(lambda p: {"a": p["x"] ** 3, "n": p["n"] + 1}, ({"x": X[0], "n": 3},), modes=("rev",))
    fx.check_grads(lambda x: fx.sin(x), (X[0].astype(np.float32),))

    @fx.custom_vjp
    def wrong(x):
        return fx.sin(x)

    wrong.defvjp(lambda x: (fx.sin(x), x), lambda x, ct: (ct * fx.cos(x) * 1.01,))
    for modes in (("rev",), ("fwd",)):
        with pytest.raises(FluxError, match=r"derivative.* differs from finite differences") as e:
            fx.check_grads(wrong, (X[0],), modes=modes)
        assert e.value.code == "FX0415"
    with pytest.raises(
        FluxError, match="of the reverse derivative"
    ):  # the first derivative is right, the second is not

        @fx.custom_vjp
        def later(x):
            return fx.sin(x)

        later.defvjp(lambda x: (fx.sin(x), x), lambda x, ct: (ct * fx.stop_gradient(fx.cos(x)),))
        fx.check_grads(later, (X[0],), modes=("rev",))
