"""`fx.vmap` against a Python loop: every op from its samples, each form of control flow, in any nesting with derivatives.

`check` maps a function written with `fx` over the first axis of some arguments and compares with calling it for each; values,
gradients, second derivatives and nested maps, interpreted and compiled.
"""

from __future__ import annotations

import itertools
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
from fluxir.runtime.program import Program
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
