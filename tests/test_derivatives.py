"""The derivative of every op, from its samples: finite differences, forward against reverse, second order, types, sizes.

Samples are computed in f64, with inputs kept away from kinks: elements that come too close to each other, to zero or to an
integer are moved apart. An op without floats in or out, or with a reason why it is constant, has nothing to check.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fluxir as fx
import fluxir.passes
from fluxir.driver import DERIVE, run_passes
from fluxir.errors import FluxError
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Module, Op, Value
from fluxir.ir.interp import interpret
from fluxir.ir.opdef import REGISTRY, Sample, normalise_attrs
from fluxir.ir.types import TensorType, parse_type
from fluxir.ops.control import Transform

EPS = 1e-6
OPS = [n for n, d in sorted(REGISTRY.items()) if d.level != "loop" and d.samples]
# Ops whose derivative is taken through their regions are checked in test_transforms.py.
CONTROL = {"if", "scan", "while", "call", "fused", "assert"}


def is_float(t: Any) -> bool:
    return isinstance(t, TensorType) and bool(t.dtype.is_float)


@functools.cache
def cases() -> list[tuple[str, int]]:
    out = []
    for name in OPS:
        d = REGISTRY[name]
        if d.constant:
            continue
        for k, s in enumerate(d.samples):
            types = [parse_type(t) for t in s.types]
            if not any(map(is_float, types)):
                continue
            if any(isinstance(a, np.dtype) for a in s.attrs.values()):
                continue
            if any(is_float(r.type) for r in made(name, s).results):
                out.append((name, k))
    return out


def in_f64(t: TensorType) -> TensorType:
    return TensorType(fx.f64, t.shape) if is_float(t) else t


def made(name: str, s: Sample, wide: bool = True) -> Op:
    types = [parse_type(t) for t in s.types]
    args = [Value(in_f64(t) if wide else t, None, i) for i, t in enumerate(types)]  # type: ignore[arg-type]
    attrs = dict(s.attrs)
    if wide and name == "cast" and is_float(types[0]):
        attrs["dtype"] = fx.f64 if fluxir.ir.dtypes.dtype_of(attrs["dtype"]).is_float else attrs["dtype"]
    d = REGISTRY[name]
    return Op(d, args, normalise_attrs(d, attrs))


def function(op: Op) -> Func:
    args = [Value(v.type, None, i, f"x{i}") for i, v in enumerate(op.operands)]
    b = Builder()
    outs = b.emit(op.name, *args, **op.attrs)
    return Func(op.name + "_op", Block(args, b.ops, outs))


# Where a derivative jumps at quotients that are whole numbers: operands with quotients between 2.2 and 2.7.
RANGES = {"fmod": ((2.2, 2.4), (0.9, 1.0)), "remainder": ((2.2, 2.4), (0.9, 1.0))}


def inputs(name: str, s: Sample, op: Op) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(zlib.crc32(f"{name}{s.types}{s.attrs}".encode()))
    given = s.make(rng) if s.make is not None else [None] * len(op.operands)
    out: list[Any] = []
    ranges = RANGES.get(name, ((s.low, s.high),) * len(op.operands))
    for a, v, (low, high) in zip(given, op.operands, ranges, strict=True):
        t = v.type
        assert isinstance(t, TensorType)
        if a is None and t.dtype.is_float:
            a = rng.uniform(low, high, t.shape)
        elif a is None:
            a = rng.integers(0, 2, t.shape) if t.dtype.is_bool else rng.integers(max(0, int(low)), 4, t.shape)
        a = np.asarray(a).astype(t.dtype.numpy)
        if t.dtype.is_float:
            taken = np.concatenate([x.reshape(-1) for x in out if x.dtype.kind == "f"] or [np.zeros(0)])
            a = apart(a, taken, rng, low, high, s.make is None)
        out.append(a)
    return out


def apart(a: Any, taken: Any, rng: Any, low: float, high: float, drawn: bool) -> np.ndarray[Any, Any]:
    """Finite values, none of a magnitude within 1e-3 of another's (here or in `taken`) or of a multiple of 1/2."""
    width = (high - low) or 1.0
    flat = np.where(np.isfinite(a), a, rng.uniform(low, high, a.shape)).reshape(-1)
    for _ in range(100):
        distance = np.abs(np.abs(flat)[:, None] - np.abs(np.concatenate([flat, taken]))[None, :])
        distance[np.arange(len(flat)), np.arange(len(flat))] = 1
        bad = (np.abs(flat * 2 - np.rint(flat * 2)) < 4e-3) | (distance.min(axis=1, initial=1) < 1e-3)
        if not bad.any():
            break
        again = rng.uniform(low, high, flat.shape) if drawn else flat + rng.uniform(0.01, 0.02, flat.shape) * width
        flat = np.where(bad, again, flat)
    return flat.reshape(a.shape)


def derived(f: Func, kind: str, wrt: Sequence[int], of: Sequence[int], twice: bool = False) -> Func:
    """The function that a transform makes of `f`."""
    t = Transform(kind, tuple(wrt), tuple(of))
    extra = [f.outs[j].type for j in of] if kind != "jvp" else [f.args[i].type for i in wrt]
    args = [Value(x, None, i) for i, x in enumerate([*[a.type for a in f.args], *extra])]
    outs = (
        [f.args[i].type for i in wrt]
        if kind == "pullback"
        else [*[v.type for v in f.outs], *[f.outs[j].type for j in of]]
    )
    b = Builder()
    results = b.emit("call", *args, callee=f.name, results=tuple(outs), transform=str(t))
    m = Module("m", {"main": Func("main", Block(args, b.ops, results)), f.name: f})
    m, _ = run_passes(m, f"{DERIVE},inline")
    g = m.entry
    assert len(m.funcs) == 1
    return Func(f"{f.name}_{kind}{'2' if twice else ''}", g.block)


def run(f: Func, args: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    return interpret(Module("m", {f.name: f}), args)


def directional(f: Func, args: list[Any], wrt: Sequence[int], vs: Sequence[Any], of: Sequence[int]) -> list[Any]:
    def moved(h: float) -> list[Any]:
        xs = list(args)
        for i, v in zip(wrt, vs, strict=True):
            xs[i] = xs[i] + h * v
        return [run(f, xs)[j].astype(np.float64) for j in of]

    # Fourth-order differences allow a step large enough that rounding does not show.
    h = EPS * 100
    parts = [moved(k * h) for k in (-2, -1, 1, 2)]
    return [(a - 8 * b + 8 * c - d) / (12 * h) for a, b, c, d in zip(*parts, strict=True)]


def agree(a: Any, b: Any, tol: float) -> None:
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * (1 + np.max(np.abs(b), initial=0)))


def setup(name: str, k: int) -> tuple[Func, list[Any], list[int], list[int], Any]:
    s = REGISTRY[name].samples[k]
    op = made(name, s)
    f = function(op)
    args = inputs(name, s, op)
    wrt = [i for i, v in enumerate(op.operands) if is_float(v.type)]
    of = [j for j, r in enumerate(op.results) if is_float(r.type)]
    return f, args, wrt, of, np.random.default_rng(k)


@pytest.mark.parametrize(("name", "k"), cases())
def test_first_derivative(name: str, k: int) -> None:
    """Reverse and forward mode against finite differences along a random direction."""
    f, args, wrt, of, rng = setup(name, k)
    if any(np.isnan(y).any() for y in run(f, args)):  # the mean of nothing
        return
    vs = [rng.standard_normal(args[i].shape) for i in wrt]
    cts = [rng.standard_normal(r.shape) for r in (run(f, args)[j] for j in of)]
    numeric = directional(f, args, wrt, vs, of)
    forward = run(derived(f, "jvp", wrt, of), [*args, *vs])[len(f.outs) :]
    for a, b in zip(forward, numeric, strict=True):
        agree(a, b, 1e-6)
    grads = run(derived(f, "pullback", wrt, of), [*args, *cts])
    for g, i in zip(grads, wrt, strict=True):
        assert g.dtype == np.float64 and g.shape == args[i].shape
    lhs = sum(np.sum(g * v) for g, v in zip(grads, vs, strict=True))
    rhs = sum(np.sum(c * t) for c, t in zip(cts, forward, strict=True))
    agree(lhs, rhs, 1e-10)


@pytest.mark.parametrize(("name", "k"), cases())
def test_second_derivative(name: str, k: int) -> None:
    """Reverse over reverse and forward over reverse against finite differences of the reverse."""
    f, args, wrt, of, rng = setup(name, k)
    if any(np.isnan(y).any() for y in run(f, args)):  # the mean of nothing
        return
    vs = [rng.standard_normal(args[i].shape) for i in wrt]
    cts = [rng.standard_normal(r.shape) for r in (run(f, args)[j] for j in of)]
    pull = derived(f, "pullback", wrt, of)
    every = list(range(len(wrt)))
    numeric = directional(pull, [*args, *cts], wrt, vs, every)
    both = derived(pull, "jvp", wrt, every)
    moved = run(both, [*args, *cts, *vs])[len(wrt) :]
    for a, b in zip(moved, numeric, strict=True):
        agree(a, b, 1e-6)
    us = [rng.standard_normal(args[i].shape) for i in wrt]
    back = run(derived(pull, "pullback", wrt, every, twice=True), [*args, *cts, *us])
    lhs = sum(np.sum(g * v) for g, v in zip(back, vs, strict=True))
    rhs = sum(np.sum(u * t) for u, t in zip(us, moved, strict=True))
    agree(lhs, rhs, 1e-9)


@pytest.mark.parametrize("name", sorted({n for n, _ in cases()}))
def test_types_and_empty_operands(name: str) -> None:
    """Cotangents have the types of what they belong to, for every float type and for operands without elements."""
    for s in REGISTRY[name].samples:
        op = made(name, s, wide=False)
        wrt = [i for i, v in enumerate(op.operands) if is_float(v.type)]
        of = [j for j, r in enumerate(op.results) if is_float(r.type)]
        if not wrt or not of:
            continue
        f = function(op)
        for kind, want in (("pullback", [op.operands[i].type for i in wrt]), ("jvp", [op.results[j].type for j in of])):
            g = derived(f, kind, wrt, of)
            assert [v.type for v in g.outs][-len(want) :] == want


def test_no_op_is_without_a_rule_or_a_reason() -> None:
    holes = []
    for name in OPS:
        d = REGISTRY[name]
        if name in CONTROL or d.constant or d.vjp is not None or d.expand is not None:
            continue
        ops = [made(name, s) for s in d.samples]
        if any(any(is_float(v.type) for v in o.operands) and any(is_float(r.type) for r in o.results) for o in ops):
            holes.append(name)
    assert not holes, f"no derivative, and no reason: {', '.join(holes)}"


# ---- places where others go wrong -------------------------------------------------------------------------------------------


def grad_of(f: Any, x: Any) -> Any:
    x = np.asarray(x, np.float64)
    eager, compiled = fx.grad(f)(x), fx.jit(fx.grad(f))(x)
    np.testing.assert_allclose(eager, compiled, rtol=1e-12, atol=1e-12)
    return eager


def test_powers() -> None:
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(x**0), [0.0, 2.0]), 0)
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(x**1), [0.0, 2.0]), 1)
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(x**2), [0.0, -2.0]), [0, -4])
    y = np.array([0.0, 2.0])
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(fx.pow(x, fx.asarray(y))), [0.0, 0.0]), 0)
    assert np.isfinite(grad_of(lambda e: fx.sum(fx.pow(fx.zeros(2, dtype=fx.float64), e)), [1.0, 2.0])).all()

    mixed = fx.jacfwd(fx.grad(lambda x, y: fx.pow(x, y)), argnums=1)(np.float64(2), np.float64(0))
    np.testing.assert_allclose(mixed, 0.5)  # the derivative by x is 0 at y = 0, its derivative by y is 1/x


@pytest.mark.parametrize(
    ("f", "at", "slope", "curvature"),
    [
        (lambda x, y: fx.sinc(x) + 0 * y, (0.0, 0.0), (0, 0), ((-(np.pi**2) / 3, 0), (0, 0))),
        (fx.hypot, (0.0, -2.0), (0, -1), ((0.5, 0), (0, 0))),
        (fx.hypot, (3.0, 3.0), (0.5**0.5, 0.5**0.5), np.array([[1, -1], [-1, 1]]) * 2**-1.5 / 3),
        (fx.logaddexp, (1.0, 1.0), (0.5, 0.5), ((0.25, -0.25), (-0.25, 0.25))),
        (fx.logaddexp2, (1.0, 1.0), (0.5, 0.5), np.array([[1, -1], [-1, 1]]) * np.log(2) / 4),
    ],
)
def test_smooth_functions_where_their_formula_changes(f: Any, at: Any, slope: Any, curvature: Any) -> None:
    xs = [np.float64(v) for v in at]
    np.testing.assert_allclose(fx.grad(f, (0, 1))(*xs), slope, atol=1e-15)
    np.testing.assert_allclose(fx.hessian(f, (0, 1))(*xs), curvature, atol=1e-14)


def test_nan_that_is_left_out_has_no_part_in_derivatives() -> None:
    x = np.array([1.0, np.nan, 3.0])
    np.testing.assert_allclose(grad_of(fx.nanvar, x), [-1, 0, 1])
    np.testing.assert_allclose(grad_of(fx.nanstd, x), [-0.5, 0, 0.5])


def test_where_keeps_nan_out() -> None:
    g = grad_of(lambda x: fx.sum(fx.where(x > 0, fx.sqrt(fx.where(x > 0, x, 1.0)), 0.0)), [4.0, -1.0, 0.0])
    np.testing.assert_array_equal(g, [0.25, 0, 0])
    assert not np.isnan(grad_of(lambda x: fx.sum(fx.where(x > 0, x, fx.log(fx.abs(x) + 1))), [1.0, 0.0])).any()


def test_roots_at_zero() -> None:
    assert np.isinf(grad_of(lambda x: fx.sum(fx.sqrt(x)), [0.0])).all()
    np.testing.assert_array_equal(grad_of(lambda x: fx.linalg.norm(x), [0.0, 0.0]), 0)


def test_ties() -> None:
    np.testing.assert_array_equal(grad_of(fx.max, [1.0, 3.0, 3.0]), [0, 0.5, 0.5])
    np.testing.assert_array_equal(grad_of(fx.min, [1.0, 1.0, 3.0]), [0.5, 0.5, 0])
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(fx.maximum(x, 1.0)), [1.0, 2.0, 0.0]), [0.5, 1, 0])
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(fx.nn.relu(x)), [0.0, 2.0, -1.0]), [0, 1, 0])
    np.testing.assert_array_equal(
        grad_of(lambda x: fx.sum(fx.sort(x) * fx.arange(3.0, dtype=fx.float64)), [2.0, 2.0, 1.0]), [1, 2, 0]
    )
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(fx.abs(x)), [0.0, -2.0]), [0, -1])


def test_products_with_zeros() -> None:
    for x in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [2.0, 4.0, 3.0], [0.0, 0.0, 0.0]):
        want = [np.prod(np.delete(x, i)) for i in range(3)]
        np.testing.assert_allclose(grad_of(fx.prod, x), want)
        jac = [[np.prod(np.delete(x[: k + 1], i)) if i <= k else 0.0 for i in range(3)] for k in range(3)]
        np.testing.assert_allclose(grad_of(lambda x: fx.sum(fx.cumprod(x)), x), np.sum(jac, 0))


def test_logsumexp_of_minus_infinity() -> None:
    inf = np.inf
    np.testing.assert_allclose(grad_of(lambda x: fx.logsumexp(x), [0.0, -inf, 0.0]), [0.5, 0, 0.5])
    np.testing.assert_array_equal(grad_of(lambda x: fx.logsumexp(x), [-inf, -inf]), 0)
    g = grad_of(lambda x: fx.sum(fx.nn.softmax(x) * fx.asarray([1.0, 2.0, 3.0], dtype=fx.float64)), [0.0, -inf, 1.0])
    assert np.isfinite(g).all() and g[1] == 0


def test_indices_that_repeat_or_lie_outside() -> None:
    i = np.array([0, 2, 2, 0, 2])
    np.testing.assert_array_equal(grad_of(lambda x: fx.sum(x[fx.asarray(i)]), [1.0, 2.0, 3.0]), [2, 0, 3])
    w = np.array([1.0, 10.0, 100.0])

    def last_wins(u: Any) -> Any:
        return fx.sum(fx.zeros(3, dtype=fx.float64).at[fx.asarray(np.array([1, 1, 0]))].set(u) * fx.asarray(w))

    np.testing.assert_array_equal(grad_of(last_wins, [5.0, 6.0, 7.0]), [0, 10, 1])
    np.testing.assert_array_equal(
        grad_of(lambda x: fx.sum(fx.zeros(3, dtype=fx.float64).at[fx.asarray(i)].add(x)), np.arange(5.0)), 1
    )


def test_reading_by_index_in_a_loop_costs_what_it_reads() -> None:
    """The cotangent of a table that a loop reads row by row is updated in place: the work does not grow with the table."""

    def f(table: Any, index: Any) -> Any:
        return fx.scan(lambda c, i: (c + fx.sum(fx.tanh(table[i])), None), 0.0, index)[0]

    costs = []
    for rows in (100, 10_000):
        low = fx.jit(fx.grad(f)).lower(fx.f32[rows, 4], fx.i64[50])
        body = low.as_text("fused", locations=False)
        loop = body[body.rindex("scan(") :]
        assert loop.count('mode="add"') == 1 and "broadcast" not in loop.split("yield")[0].replace("fused", "")[:0]
        costs.append(low.cost("cpu").flops)
    assert costs[1] < 3 * costs[0] + 4 * 10_000 * 4


def test_an_op_without_a_rule_is_named() -> None:
    with pytest.raises(FluxError) as e:
        fx.grad(lambda x: fx.sum(fx.astype(x, fx.int32)) * 1.0)(np.arange(3))
    assert e.value.code == "FX0411"
    np.testing.assert_array_equal(fx.grad(lambda x: fx.sum(fx.astype(fx.floor(x), fx.float64)))(np.ones(3)), 0)
