"""Tracing: names, captures, constants, locations, indexing assignment, promotion of numbers, and the errors of tracing."""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.trace import Traced, trace
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module

X = np.arange(12, dtype=np.float32).reshape(3, 4)
I = np.array([2, 0, 2])


def run(fn: Any, *args: Any) -> Any:
    """Trace on the arguments' types, verify, interpret."""
    t = trace(fn, args)
    verify_module(t.module)
    leaves = tree.flatten((args, {}))[0]
    return t.out_tree.unflatten(interpret(t.module, leaves))


def code_of(fn: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(FluxError) as caught:
        trace(fn, args, **options)
    return caught.value.code


def ops(t: Traced) -> list[str]:
    return [op.name for op in t.entry.ops]


# ---- signatures -----------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Params:
    w: Any
    layers: list[Any]
    mode: str = field(default="relu", metadata={"static": True})


def test_arguments_and_results_are_named_by_their_paths() -> None:
    def f(a: Any, params: Any, *rest: Any, scale: Any) -> Any:
        assert params.mode == "relu" and isinstance(rest[0], Point)
        return {"out": a @ params.w, "more": (params.layers[1]["b"], rest[0].y * scale)}

    f32 = fx.f32
    t = trace(f, (f32["B", 4], Params(f32[4, 2], [None, {"b": f32[3]}]), Point(f32[2], f32[2])), {"scale": f32})
    assert t.arg_names == ("a", "params.w", "params.layers.1.b", "rest0.x", "rest0.y", "scale")
    assert t.result_names == ("more.0", "more.1", "out")
    assert str(t.entry.outs[2].type) == "f32[B,2]"
    assert t.entry.loc is not None and t.entry.loc.func == "f"


def test_a_single_result_is_y_and_a_tuple_is_numbered() -> None:
    assert trace(lambda x: x + 1, [X]).result_names == ("y",)
    assert trace(lambda x: (x, [x]), [X]).result_names == ("y0", "y1.0")


def test_partial_and_callable_objects_are_traced() -> None:
    class Layer:
        def __call__(self, x: Any) -> Any:
            return x * 2

    assert trace(Layer(), [X]).module.name == "Layer"
    t = trace(functools.partial(lambda x, k: x * k, k=3), [X])
    assert t.arg_names == ("x",)


def test_results_that_are_numbers_and_arrays_become_constants() -> None:
    a, b, n = run(lambda x: (1.5, I, None), X)
    assert a == 1.5 and a.dtype == np.float32 and n is None
    np.testing.assert_array_equal(b, I)
    assert code_of(lambda x: object(), X) == "FX0229"


def test_size_equations_become_guards() -> None:
    t = trace(lambda x, y: x + y, [fx.f32["N"], fx.f32["M"]])
    assert t.module.facts.describe() == ["N == M"]
    with pytest.raises(FluxError) as caught:
        interpret(t.module, [np.ones(3, np.float32), np.ones(4, np.float32)])
    assert caught.value.code == "FX0604"
    t = trace(lambda x: x[1:], [fx.f32["N"]], facts="N >= 1, N % 4 == 0")
    assert t.module.facts.describe() == ["N >= 1", "N % 4 == 0"]
    assert str(t.entry.outs[0].type) == "f32[N-1]"
    assert code_of(lambda x: x, X, facts="N is large") == "FX0114"

    def assuming(x: Any) -> Any:
        fx.assume("N >= 3")
        return x[2]

    assert trace(assuming, [fx.f32["N"]]).module.facts.describe() == ["N >= 3"]


def test_sizes_compute_like_numbers() -> None:
    t = trace(lambda x: (x.sum() / x.shape[0], x.shape[0] * x, fx.arange(x.shape[0] * 2)), [fx.f32["N"]])
    verify_module(t.module)
    a, b, c = interpret(t.module, [np.array([1, 2, 6], np.float32)])
    assert a == 3
    np.testing.assert_array_equal(b, [3, 6, 18])
    np.testing.assert_array_equal(c, np.arange(6))


# ---- numbers and types ------------------------------------------------------------------------------------------------------


def test_a_number_argument_never_widens_a_tensor() -> None:
    t = trace(lambda x, n, f: (x * n + f, n + 1, n * f), [X.astype(np.float16), 3, 2.5])
    assert [str(v.type) for v in t.entry.outs] == ["f16[3,4]", "i64", "f32"]
    assert code_of(lambda x, f: x + f, I, 2.5) == "FX0201"


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ("f32", "f64", "f64"),
        ("i8", "u8", "i16"),
        ("u32", "i8", "i64"),
        ("f16", "f32", "f32"),
        ("bf16", "f32", "f32"),
        ("u8", "u16", "u16"),
    ],
)
def test_promotion(a: str, b: str, want: str) -> None:
    assert str(trace(lambda x, y: x + y, [getattr(fx, a)[3], getattr(fx, b)[3]]).entry.outs[0].type) == f"{want}[3]"


@pytest.mark.parametrize(("a", "b"), [("f16", "bf16"), ("i32", "f32"), ("u64", "i64"), ("bool", "i32")])
def test_kinds_do_not_mix(a: str, b: str) -> None:
    with pytest.raises(FluxError) as caught:
        trace(lambda x, y: x + y, [getattr(fx, a)[3], getattr(fx, b)[3]])
    assert caught.value.code == "FX0201"
    assert caught.value.labels == [("x", f"{a}[3]"), ("y", f"{b}[3]")]


def test_numpy_operands_are_strong_on_both_sides() -> None:
    a, b, c = run(lambda x: (X + x, x * np.float64(2), X @ x.T), X)
    assert a.dtype == np.float32 and b.dtype == np.float64
    np.testing.assert_array_equal(a, X + X)
    np.testing.assert_array_equal(c, X @ X.T)


def test_bfloat16_constants() -> None:
    w = np.ones(4, ml_dtypes.bfloat16)
    (r,) = run(lambda x: [fx.astype(x, fx.bf16) + w], X)
    assert r.dtype == w.dtype


# ---- constants ----------------------------------------------------------------------------------------------------------------


def test_equal_constants_are_one_and_later_changes_do_not_matter() -> None:
    w = np.arange(40, dtype=np.float32)

    def f(x: Any) -> Any:
        a = x + w
        b = a * w.copy()
        w[0] = 99
        return b + w

    t = trace(f, [np.ones(40, np.float32)])
    assert ops(t).count("const") == 2
    np.testing.assert_array_equal(next(op for op in t.entry.ops if op.name == "const").attrs["value"], np.arange(40))
    assert w[0] == 99 and w.flags.writeable


def test_numbers_are_not_repeated() -> None:
    assert ops(trace(lambda x: (x + 1) * 1 - 1, [X])).count("const") == 1


# ---- index assignment -----------------------------------------------------------------------------------------------------------


def numpy_set(key: Any, value: Any) -> Any:
    y = X.copy()
    y[key] = value
    return y


@pytest.mark.parametrize(
    "key",
    [0, -1, (1, 2), (slice(None), 1), slice(1, None), (slice(None), slice(None, None, 2)), (slice(None, None, -1), slice(3, 0, -2)), (Ellipsis, 3), (None, 1),
     np.array([0, 2]), (slice(None), np.array([3, 1, 0])), (np.array([0, 1]), np.array([3, 2])), (np.array([[0], [1]]), np.array([3, 2])), (slice(0, 2), np.array([1, 2])),
     (np.array([2, 0]), slice(1, 4, 2)), (np.array([2, 0]), 1), slice(2, 2), X[:, 0] > 3],
)  # fmt: skip
def test_index_assignment_is_numpys(key: Any) -> None:
    shape = X[key].shape
    values = np.arange(100, 100 + int(np.prod(shape)), dtype=np.float32).reshape(shape)

    def assign(x: Any) -> Any:
        x[key] = values
        return x

    np.testing.assert_array_equal(run(assign, X), numpy_set(key, values))
    np.testing.assert_array_equal(run(lambda x: x.at[key].set(7), X), numpy_set(key, 7))
    added = X.copy()
    added[key] += values
    np.testing.assert_array_equal(run(lambda x: x.at[key].add(values), X), added)
    np.testing.assert_array_equal(run(lambda x: x.at[key].get(), X), X[key])


def test_repeated_indices_accumulate_in_order() -> None:
    x, i, v = np.zeros(3, np.float32), np.array([1, 1, 2]), np.array([1, 2, 5], np.float32)
    got = run(
        lambda x, i, v: (x.at[i].add(v), x.at[i].set(v), x.at[i].max(v), (x + 1).at[i].mul(v), x.at[i].min(-v)), x, i, v
    )
    for a, b in zip(got, ([0, 3, 5], [0, 2, 5], [0, 2, 5], [1, 2, 5], [0, -2, -5])):
        np.testing.assert_array_equal(a, b)


def test_run_time_indices_count_from_the_end_and_are_clamped_or_dropped() -> None:
    x, i = np.arange(4, dtype=np.float32), np.array(-1)
    got = run(
        lambda x, i: (x[i], x[i + 9], x.at[i].set(7), x.at[i + 9].set(7), x.at[fx.stack([i, i + 9])].set(7)), x, i
    )
    for a, b in zip(got, (3, 3, [0, 1, 2, 7], [0, 1, 2, 7], [0, 1, 2, 7])):
        np.testing.assert_array_equal(a, b)


def test_augmented_assignment() -> None:
    def f(x: Any) -> Any:
        y = x
        y[0] += 1
        y[:, 1] *= 2
        x = x + 0
        x += 5
        return x, y

    def g(x: Any) -> Any:
        y = x.copy()
        y[0] += 1
        y[:, 1] *= 2
        return y + 5, y

    for a, b in zip(run(f, X), g(X)):
        np.testing.assert_array_equal(a, b)


def test_a_write_that_would_be_lost_is_refused() -> None:
    def chained(x: Any) -> Any:
        x[0][1] = 5
        return x

    def from_outside(x: Any) -> Any:
        def body(c: Any, _: Any) -> Any:
            x[0] = 1
            return c, None

        return fx.scan(body, 0, None, length=2)

    def row(x: Any) -> Any:
        r = fx.copy(x[0])
        r[1] = 5
        return r

    assert code_of(chained, X) == "FX0304"
    assert code_of(from_outside, X) == "FX0304"
    np.testing.assert_array_equal(run(row, X), [0, 5, 2, 3])
    assert code_of(lambda x: x.at[0].set(np.ones(3, np.float32)), X) == "FX0202"
    assert code_of(lambda x: x.at[0].set(np.ones(4)), X) == "FX0201"


# ---- what a traced tensor cannot do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "f"),
    [
        ("FX0301", lambda x: 1 if x[0, 0] > 0 else 2), ("FX0301", lambda x: 3 in x), ("FX0301", lambda x: x.shape[0] and not x), ("FX0302", lambda x: int(x.sum())), ("FX0302", lambda x: float(x.sum())), ("FX0302", lambda x: range(fx.argmax(x))),
        ("FX0302", lambda x: x.sum().item()), ("FX0302", lambda x: x.tolist()), ("FX0302", lambda x: [1, 2, 3][fx.argmax(x)]), ("FX0314", lambda x: list(x.sum())), ("FX0315", lambda x: np.sin(x)), ("FX0315", lambda x: np.sum(x)), ("FX0315", lambda x: np.asarray(x)),
        ("FX0315", lambda x: np.concatenate([x, x])), ("FX0304", lambda x: np.add(X, x, out=X.copy())),
    ],
)  # fmt: skip
def test_python_cannot_see_a_traced_value(code: str, f: Any) -> None:
    with pytest.raises(FluxError) as caught:
        trace(f, [X])
    assert caught.value.code == code and caught.value.help
    assert caught.value.loc is not None and caught.value.loc.file == __file__


def test_symbolic_lengths() -> None:
    assert code_of(lambda x: len(x), fx.f32["N"]) == "FX0302"
    assert code_of(lambda x: list(x), fx.f32["N", 2]) == "FX0314"
    assert code_of(lambda x: fx.zeros(3) if x.shape[0] else x, fx.f32["N"]) == "FX0301"
    np.testing.assert_array_equal(run(lambda x: sum(x), X), X.sum(axis=0))
    assert run(lambda x: len(x), X) == 3


def test_tensors_do_not_outlive_their_trace() -> None:
    kept: list[Any] = []
    trace(lambda x: kept.append(x * 2), [X])
    assert code_of(lambda x: x + kept[0], X) == "FX0311"
    with pytest.raises(FluxError) as caught:
        fx.exp(kept[0])
    assert caught.value.code == "FX0311"

    def leak(x: Any) -> Any:
        fx.cond(x.sum() > 0, lambda: kept.append(x * 3), lambda: None)
        return kept[-1] + 1

    assert code_of(leak, X) in ("FX0311", "FX0212")


def test_arguments_that_cannot_be_traced() -> None:
    assert code_of(lambda x: x, object()) == "FX0303"
    assert code_of(lambda x: x, {"a": object()}) == "FX0303"
    assert code_of(lambda x: x, np.array(["a"])) == "FX0325"
    assert code_of(lambda x: x, {(1, 2): X}) == "FX0303"


# ---- where things are -----------------------------------------------------------------------------------------------------------------


def test_every_op_knows_the_users_line_and_column() -> None:
    def f(x: Any) -> Any:
        y = fx.nn.softmax(x)
        return x @ y.T

    t = trace(f, [X])
    lines = {op.name: op.loc for op in t.entry.ops}
    first = f.__code__.co_firstlineno
    softmax, dot = lines["softmax"], lines["dot"]
    assert softmax is not None and dot is not None
    assert (softmax.line, softmax.col, softmax.func) == (first + 1, 13, "f")
    assert (dot.line, dot.col) == (first + 2, 16)


def test_values_are_named_after_the_users_variables() -> None:
    def f(x: Any) -> Any:
        h = fx.nn.linear(x, X.T.copy(), 1.0)
        a, _ = fx.split(h, [1], axis=1)
        h = fx.exp(h)
        return h + a

    t = trace(f, [X])
    assert [(op.name, op.results[0].name) for op in t.entry.ops if op.results[0].name] == [("add", "h"), ("exp", "h.1")]


def test_a_shape_error_shows_line_names_and_types() -> None:
    def f(x: Any, w: Any) -> Any:
        return x @ w

    with pytest.raises(FluxError) as caught:
        trace(f, [fx.f32["batch", 4], fx.f32[5, 6]])
    text = caught.value.render()
    assert (
        "return x @ w" in text
        and "x: f32[batch,4]   w: f32[5,6]" in text
        and "4 (x, axis 1) is not 5 (w, axis 0)" in text
    )

    def g(x: Any, w: Any) -> Any:
        h = x * 2
        return fx.add(h, w)

    with pytest.raises(FluxError) as caught:
        trace(g, [fx.f32[3, 4], fx.f32[5]])
    assert caught.value.labels[:2] == [("h", "f32[3,4]"), ("w", "f32[5]")]


# ---- the package ----------------------------------------------------------------------------------------------------------------------


def test_import_is_light_and_every_public_name_loads() -> None:
    code = (
        "import sys, fluxir; heavy = [m for m in ('numpy', 'llvmlite', 'lark', 'click', 'ml_dtypes') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "missing = [n for n in dir(fluxir) if getattr(fluxir, n, None) is None and n != 'newaxis']\n"
        "assert not missing, missing\n"
        "assert 'llvmlite' not in sys.modules and 'lark' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_table_agrees_with_the_modules() -> None:
    import importlib

    for module, names in fx._NAMES.items():
        part = module.rpartition(".")[2]
        if part.startswith("api_") or part in ("control", "einsum"):
            assert sorted(names.split()) == sorted(importlib.import_module(module).__all__), module


ARRAY_API = """
e inf nan newaxis pi arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu zeros zeros_like
astype broadcast_arrays broadcast_to can_cast finfo iinfo isdtype result_type bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64
abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert bitwise_or bitwise_right_shift bitwise_xor ceil clip conj
copysign cos cosh divide equal exp expm1 floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less less_equal log log1p log2 log10
logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow real reciprocal remainder
round sign signbit sin sinh square sqrt subtract tan tanh trunc take take_along_axis matmul matrix_transpose tensordot vecdot broadcast_shapes concat
expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack tile unstack argmax argmin count_nonzero nonzero searchsorted where unique_all
unique_counts unique_inverse unique_values argsort sort cumulative_prod cumulative_sum max mean min prod std sum var all any diff
""".split()


def test_the_array_api_standard_is_complete() -> None:
    assert [n for n in ARRAY_API if not hasattr(fx, n)] == []
    extension = "cross diagonal matmul matrix_norm matrix_power matrix_transpose outer tensordot trace vecdot vector_norm".split()
    assert [n for n in extension if not hasattr(fx.linalg, n)] == []
    assert trace(lambda x: x if x.__array_namespace__() is fx else None, [X]).out_tree == tree.LEAF
