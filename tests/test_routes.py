"""Routes: every kind of repeated call is what the call in Python is, notices what is different, and holds no reference."""

from __future__ import annotations

import gc
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config
from fluxir.errors import FluxError
from fluxir.runtime import native, route

Pair = namedtuple("Pair", "x y")
X, Y = np.arange(6, dtype=np.float32), np.ones(6, np.float32)


@dataclass
class Layer:
    w: Any
    b: Any = None
    name: str = field(default="plain", metadata={"static": True})


def taken(f: Any, *args: Any, **named: Any) -> bool:
    """Whether a call takes a route: the Python way is not asked."""
    asked = []
    original = type(f)._called
    table = int(f._calls[1])

    def ask(*a: Any, **k: Any) -> Any:
        asked.append(1)
        return original(*a, **k)

    f._calls[1] = id(ask)
    try:
        f(*args, **named)
    finally:
        f._calls[1] = table
    return not asked


def double(x: Any) -> Any:
    return x + x


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "arrays": (lambda x, y: x + y, (X, Y)),
    "no dimension": (lambda x, y: x * y, (X, np.array(3, np.float32))),
    "float": (lambda x, y: x * y, (X, 2.5)),
    "int": (lambda x, n: x * n, (np.arange(3), -7)),
    "int for floats": (lambda x, n: x * n, (X, 3)),
    "bool": (lambda x, c: fx.where(c, x, -x), (X, False)),
    "numpy scalars": (lambda x, a, n: (x * a, n * n), (X, np.float32(2), np.int16(-3))),
    "strided": (lambda x, y: x + y, (np.arange(12, dtype=np.float32)[::2], Y[::-1])),
    "column-major": (lambda x: x + 1, (np.asfortranarray(np.arange(6.0).reshape(2, 3)),)),
    "misaligned": (lambda x: x + 1, (np.frombuffer(b"12" + X.tobytes(), np.float32, offset=2),)),
    "read-only": (lambda x: x + 1, (np.broadcast_to(X, (2, 6)),)),
    "empty": (lambda x: x + 1, (np.zeros((0, 3)),)),
    "half": (lambda x: x * 2, (np.arange(4, dtype=np.float16),)),
    "large": (lambda x: (x + 1, fx.sum(x)), (np.ones(5000, np.float32),)),
    "list": (lambda xs: [xs[1], xs[0] + xs[1]], ([X, Y],)),
    "tree": (lambda t: {"b": (t["a"][0] * 2, None), "a": [t["c"]]}, ({"a": (X, None), "c": 1.5},)),
    "named tuple": (lambda p: Pair(p.y, p.x), (Pair(X, Y),)),
    "dataclass": (lambda m, x: Layer(m.w + x, name=m.name), (Layer(X), Y)),
    "nothing": (lambda: fx.arange(3), ()),
    "static in a tree": (lambda t, x: t["f"](x) if t["how"] == "on" else x, ({"f": double, "how": "on", "dtype": np.dtype("f4")}, X)),
    "gradient": (fx.grad(lambda p, x: fx.sum(p["w"] * x) ** 2), ({"w": X}, Y)),
    "batched": (fx.vmap(lambda x, y: x * y, in_axes=(0, None)), (X, 2.0)),
}  # fmt: skip


def flat(tree: Any) -> list[Any]:
    return fx.tree.flatten(tree)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_route_does_what_the_call_in_python_does(name: str) -> None:
    fn, args = CASES[name]
    f = fx.jit(fn)
    first = f(*args)
    again = f(*args)
    assert taken(f, *args)
    assert fx.tree.flatten(first)[1] == fx.tree.flatten(again)[1]
    for a, b in zip(flat(first), flat(again), strict=True):
        assert type(a) is type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes() and b.flags.writeable and b.flags.c_contiguous
        assert b.nbytes < route.LARGE or b.ctypes.data % 64 == 0
        assert not any(np.may_share_memory(a, x) for x in flat(args) if isinstance(x, np.ndarray))


@pytest.mark.parametrize("name", CASES)
def test_no_reference_is_kept_or_lost(name: str) -> None:
    fn, args = CASES[name]
    f = fx.jit(fn)
    f(*args)
    seen = [x for x in (*args, *flat(args)) if not isinstance(x, (bool, int))]
    seen += [x.dtype for x in seen if isinstance(x, np.ndarray)]
    f(*args)
    gc.collect()
    before = [sys.getrefcount(x) for x in seen]
    for _ in range(50):
        f(*args)
    gc.collect()
    after = [sys.getrefcount(x) for x in seen]
    assert all(abs(a - b) < 25 for a, b in zip(after, before, strict=True)), (before, after)


def test_what_is_different_is_noticed() -> None:
    f = fx.jit(lambda t, x, how="sum": fx.sum(x) if how == "sum" else t["w"] * x, static_argnames="how")
    t = {"w": X}
    for _ in range(2):
        assert f(t, Y) == 6 and f(t, Y, how="sum") == 6
        np.testing.assert_array_equal(f(t, Y, how="no"), X)
        assert f(t, np.ones(7, np.float32)) == 7  # another shape
        assert f(t, np.ones(6)).dtype == np.float64  # another dtype
        assert f(t, np.ones((2, 3), np.float32)) == 6  # another rank
        assert f({"w": X, "v": X}, Y) == 6  # another structure
        assert f(t, 2.0) == 2 and f(t, 2).dtype == np.int64 and f(t, True).dtype != np.float32
        assert f(t=t, x=Y) == f(x=Y, t=t) == 6
        with pytest.raises(FluxError):
            f(t, "text")
        with pytest.raises(TypeError):
            f(t, Y, Y, Y, Y)
    g = fx.jit(lambda m, x: x if m.name == "plain" else -x)
    for _ in range(3):
        assert g(Layer(X), Y)[0] == 1 and g(Layer(X, name="other"), Y)[0] == -1


def test_numbers_at_the_limits() -> None:
    f = fx.jit(lambda n: n + 0)
    for n in (0, 5, -(2**63), 2**63 - 1, 7):
        assert f(n) == n
    for _ in range(2):
        with pytest.raises((OverflowError, FluxError)):
            f(2**63)
    g = fx.jit(lambda x: x * 1)
    for value in (1.0, 0.1, -0.0, float("inf"), 1e-45, 3.4e38):
        want = np.float32(value)
        assert g(value).tobytes() == want.tobytes()
    assert np.isnan(g(float("nan")))


def test_many_shapes_take_turns() -> None:
    f = fx.jit(lambda x: x + 1)
    xs = [np.full(n, n, np.float32) for n in range(1, 21)]
    for _ in range(3):
        for x in xs:
            np.testing.assert_array_equal(f(x), x + 1)
    for x in xs[-4:] * 3:
        assert taken(f, x), "the last ones are kept"


def test_settings_are_part_of_a_route() -> None:
    f = fx.jit(lambda x: x * 2)
    f(X)
    assert taken(f, X)
    with config.override(num_threads=1):
        f(X)
        assert taken(f, X)
        with pytest.raises(FluxError), config.override(device="cuda:999"):
            f(X)
    assert taken(f, X)


def test_what_machine_code_cannot_take_apart_goes_the_python_way() -> None:
    class Box:
        def __init__(self, x: Any) -> None:
            self.x = x

    class Named(dict[str, Any]):
        pass

    fx.register_tree(Box, lambda b: ([b.x], None), lambda _, xs: Box(xs[0]))
    f = fx.jit(lambda b: fx.sum(b.x if isinstance(b, Box) else b["x"]))
    for _ in range(3):
        assert f(Box(Y)) == 6 and f(Named(x=Y)) == 6 and f({"x": Y}) == 6


def test_out_and_donation_look_at_memory() -> None:
    p = fx.jit(lambda x, y: (x + y, x - y)).lower(X, Y).compile().program
    a, b = np.empty(6, np.float32), np.empty(6, np.float32)
    for _ in range(3):
        got = p(X, Y, out=[a, b])
        assert got[0] is a and got[1] is b
        np.testing.assert_array_equal(a - b, 2 * Y)
    assert taken(p, X, Y, out=[a, b])
    shared = np.zeros(12, np.float32)
    frozen = a.copy()
    frozen.flags.writeable = False
    for out in ([a, a], [X, b], [shared[:6], shared[3:9]], [frozen, b], [shared[::2], b], [a]):
        with pytest.raises(FluxError, match="FX0605"):
            p(X, Y, out=out)
    d = fx.jit(lambda x, y: x + y, donate_argnums=0)
    for _ in range(3):
        x = X.copy()
        at = x.ctypes.data
        got = d(x, Y)
        assert got.ctypes.data == at and got.flags.writeable
        with pytest.raises(FluxError, match="FX0614"):
            d(x, Y)
        view = x[:3]  # made after the memory was given away
        with pytest.raises(FluxError, match="FX0614"):
            d(X.copy()[:3], view)
        whole = np.arange(9, dtype=np.float32)
        with pytest.raises(FluxError, match="FX0614"):
            d(whole[:6], whole[3:])


def test_arrays_that_change_places() -> None:
    """Donated arrays are told apart by their addresses, in whatever order these come."""
    f = fx.jit(lambda xs, y: [x + y for x in xs], donate_argnums=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        xs = [np.full(6, k, np.float32) for k in range(12)]
        order = rng.permutation(12)
        for k, x in zip(order, f([xs[k] for k in order], Y), strict=True):
            np.testing.assert_array_equal(x, k + Y)


def test_kernels_take_routes() -> None:
    @fx.kernel
    def scale(a: Any, p: Any, out: Any) -> None:
        i = fx.gpu.global_id.x
        if i < len(out):
            out[i] = a * p.x[i] + p.y[i]

    launch = scale[1, 8]
    assert scale[1, 8] is launch and scale[2, 8] is not launch
    out = np.zeros(6, np.float32)
    for _ in range(3):
        out[:] = 0
        launch(2.0, Pair(X, Y), out)
        np.testing.assert_array_equal(out, 2 * X + Y)
    assert taken(launch, 3.0, Pair(X, Y), out) and taken(launch, 3.0, Pair(X, X), out)
    np.testing.assert_array_equal(out, 4 * X)
    both = X.copy()
    launch(2.0, Pair(both, Y), both)  # the same memory: another variant of the kernel
    np.testing.assert_array_equal(both, 2 * X + Y)
    wide = np.zeros(12, np.float32)
    for _ in range(2):
        launch(2.0, Pair(X, Y), wide[::2])
        np.testing.assert_array_equal(wide[::2], 2 * X + Y)
    frozen = out.copy()
    frozen.flags.writeable = False
    with pytest.raises(FluxError, match="FX0335"):
        launch(2.0, Pair(X, Y), frozen)


def test_the_fast_way_is_there() -> None:
    assert native.calls_are_known()
    assert type(route.Routed.__call__).__name__ == "method_descriptor"


def test_threads_share_routes_and_arenas() -> None:
    """Each call has temporaries of its own, on however many threads, and shapes come and go meanwhile."""
    f = fx.jit(lambda x: fx.cumsum(fx.sort(x * x)) + fx.sum(x))
    sizes = [int(n) for n in np.random.default_rng(1).integers(1, 300, 12)]
    want = {n: f(np.arange(n, dtype=np.float64)) for n in sizes}
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for n in rng.choice(sizes, 80):
            if f(np.arange(n, dtype=np.float64)).tobytes() != want[n].tobytes():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
