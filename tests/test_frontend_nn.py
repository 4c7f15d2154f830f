"""fx.nn, fx.random, fx.einsum and model files against numpy or against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.loader import Model
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module

RNG = np.random.default_rng(11)


def draw(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.uniform(-2, 2, shape).astype(np.float32)


def run(fn: Any, *args: Any, types: Any = None) -> Any:
    t = trace(fn, types or args)
    verify_module(t.module)
    return t.out_tree.unflatten(interpret(t.module, tree.flatten((args, {}))[0]))


def close(got: Any, want: Any, tol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=tol, atol=tol)


# ---- einsum ---------------------------------------------------------------------------------------------------------------

EQUATIONS = [
    "ij,jk->ik", "ij,jk", "ij,kj->ik", "ij->ji", "ij->", "ij->i", "ii->i", "ii", "iij->j", "i,i", "i,j->ij", "ij,ij->ij", "ij,ij->", "bij,bjk->bik", "bij,jk->bik", "ij,jk,kl->il", "ij,jk,kl,lm->im",
    "...ij,...jk->...ik", "...i->...", "i...,i...", "...,...", "b...i,ij->b...j", "abc,bd,ce->ade", "ab,ab,ab->b", "ijk,ilm,njm,nlk,abc->ab", "a,b,c->cab", "ij,j->ij", "aab,b->a", "abcd->dbca",
]  # fmt: skip
SIZES = {c: 2 + k % 4 for k, c in enumerate("abcdefghijklmn")}


def operands(equation: str) -> list[np.ndarray[Any, Any]]:
    out = []
    for k, term in enumerate(equation.split("->")[0].split(",")):
        letters = term.replace("...", "zy" if k == 0 else "y")
        out.append(draw(*[{**SIZES, "y": 3, "z": 2}[c] for c in letters]))
    return out


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_numpys(equation: str) -> None:
    xs = operands(equation)
    want = np.einsum(equation, *xs)
    close(run(lambda *a: fx.einsum(equation, *a), *xs), want)
    close(fx.einsum(equation, *xs), want)


def test_einsum_of_symbolic_sizes_broadcasts_and_takes_lists() -> None:
    x, y = draw(3, 1, 4), draw(5, 4, 2)
    close(
        run(lambda a, b: fx.einsum("...ij,...jk->...ik", a, b), x[:, :, None], y),
        np.einsum("...ij,...jk->...ik", x[:, :, None], y),
    )
    t = trace(lambda a, b: fx.einsum("bi,ij->bj", a, b), [fx.f32["B", 4], fx.f32[4, 6]])
    assert str(t.entry.outs[0].type) == "f32[B,6]" and [op.name for op in t.entry.ops] == ["dot"]
    close(fx.einsum(x, [0, 1, 2], [2, 0]), np.einsum(x, [0, 1, 2], [2, 0]))


def test_einsum_contracts_the_cheapest_pair_first() -> None:
    t = trace(lambda a, b, v: fx.einsum("ij,jk,k->i", a, b, v), [fx.f32[50, 50], fx.f32[50, 50], fx.f32[50]])
    assert all(op.result.type.rank == 1 for op in t.entry.ops)


@pytest.mark.parametrize("equation", ["ij,jk", "i1->i", "ij->ii", "ij->k", "i->i->i", "ijk->", "......->", "...->"])
def test_wrong_equations(equation: str) -> None:
    with pytest.raises(FluxError) as caught:
        fx.einsum(equation, draw(2, 3))
    assert caught.value.code == "FX0215" and equation in caught.value.message


# ---- nn ---------------------------------------------------------------------------------------------------------------------


def phi(x: Any) -> Any:
    return np.vectorize(math.erf)(x / math.sqrt(2)) / 2 + 0.5


X = draw(4, 6)
S = 1 / (1 + np.exp(-X))
ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "relu": (lambda x: fx.nn.relu(x), np.maximum(X, 0)), "relu6": (lambda x: fx.nn.relu6(4 * x), np.clip(4 * X, 0, 6)), "leaky_relu": (lambda x: fx.nn.leaky_relu(x, 0.2), np.where(X > 0, X, 0.2 * X)),
    "elu": (lambda x: fx.nn.elu(x, 2.0), np.where(X > 0, X, 2 * np.expm1(X))), "softplus": (lambda x: fx.nn.softplus(x), np.log1p(np.exp(X))), "softsign": (lambda x: fx.nn.softsign(x), X / (1 + abs(X))),
    "silu": (lambda x: fx.nn.silu(x), X * S), "sigmoid": (lambda x: fx.nn.sigmoid(x), S), "mish": (lambda x: fx.nn.mish(x), X * np.tanh(np.log1p(np.exp(X)))), "hard_sigmoid": (lambda x: fx.nn.hard_sigmoid(x), np.clip(X + 3, 0, 6) / 6),
    "hard_swish": (lambda x: fx.nn.hard_swish(x), X * np.clip(X + 3, 0, 6) / 6), "gelu": (lambda x: fx.nn.gelu(x, approximate=False), X * phi(X)), "gelu_tanh": (lambda x: fx.nn.gelu(x), 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))),
    "selu": (lambda x: fx.nn.selu(x), 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(X))), "glu": (lambda x: fx.nn.glu(x), X[:, :3] * S[:, 3:]), "log_sigmoid": (lambda x: fx.nn.log_sigmoid(x), np.log(S)),
    "softmax": (lambda x: fx.nn.softmax(x, axis=0), np.exp(X) / np.exp(X).sum(0)), "log_softmax": (lambda x: fx.nn.log_softmax(x), X - np.log(np.exp(X).sum(1, keepdims=True))), "logsumexp": (lambda x: fx.nn.logsumexp(x, axis=1), np.log(np.exp(X).sum(1))),
    "layer_norm": (lambda x: fx.nn.layer_norm(x), (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)), "rms_norm": (lambda x: fx.nn.rms_norm(x), X / np.sqrt((X * X).mean(1, keepdims=True) + 1e-6)),
    "masked softmax": (lambda x: fx.nn.softmax(x, where=x > 0), np.where(X > 0, np.exp(X), 0) / np.where(X > 0, np.exp(X), 0).sum(1, keepdims=True)),
    "mse": (lambda x: fx.nn.mse_loss(x, x * 2), (X * X).mean()), "bce": (lambda x: fx.nn.binary_cross_entropy_with_logits(x, fx.abs(x) / 2), -(abs(X) / 2 * np.log(S) + (1 - abs(X) / 2) * np.log(1 - S))),
    "cross_entropy": (lambda x: fx.nn.cross_entropy(x, np.array([0, 5, 2, 1])), (np.log(np.exp(X).sum(1)) - X[np.arange(4), [0, 5, 2, 1]])), "soft_ce": (lambda x: fx.nn.soft_cross_entropy(x, np.full((4, 6), 1 / 6, np.float32)), -(X - np.log(np.exp(X).sum(1, keepdims=True))).mean(1)),
    "one_hot": (lambda x: fx.nn.one_hot(np.array([1, 0, 7]), 3), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])), "embedding": (lambda x: fx.nn.embedding(np.array([[1, 0]]), x), X[[[1, 0]]]), "linear": (lambda x: fx.nn.linear(x, X.T.copy(), X[:, 0].copy()), X @ X.T + X[:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nn_function(name: str) -> None:
    f, want = ACTIVATIONS[name]
    if name == "masked softmax":
        rows = (X > 0).any(1)
        assert rows.all()
    close(run(f, X), want)
    close(
        run(f, X, types=[fx.f32["N", 6]]) if name not in ("cross_entropy", "soft_ce", "embedding", "linear") else want,
        want,
    )


def test_norms_with_parameters() -> None:
    x, c, v = draw(2, 4, 3, 3), draw(4), np.abs(draw(4)) + 0.5
    shape = (4, 1, 1)
    want = (x - c.reshape(shape)) / np.sqrt(v.reshape(shape) + 1e-3) * v.reshape(shape) + c.reshape(shape)
    close(run(lambda x: fx.nn.batch_norm(x, c, v, v, c, eps=1e-3), x), want)
    g = x.reshape(2, 2, -1)
    g = ((g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
    close(run(lambda x: fx.nn.group_norm(x, 2, v, c), x), g * v.reshape(shape) + c.reshape(shape))
    y = draw(2, 3, 4)
    s, b = draw(3, 4), draw(3, 4)
    n = (y - y.mean((1, 2), keepdims=True)) / np.sqrt(y.var((1, 2), keepdims=True) + 1e-5)
    close(run(lambda y: fx.nn.layer_norm(y, s, b, axis=(1, 2)), y), n * s + b)


def convolved(x: Any, w: Any, stride: int, low: int, high: int, dilation: int, groups: int) -> Any:
    """The definition, with loops: x [N,C,L], w [O,C/g,K]."""
    x = np.pad(x, ((0, 0), (0, 0), (low, high)))
    o, cg, k = w.shape
    size = (x.shape[2] - dilation * (k - 1) - 1) // stride + 1
    y = np.zeros((x.shape[0], o, size), np.float64)
    for n in range(x.shape[0]):
        for c in range(o):
            g = c // (o // groups)
            for p in range(size):
                for i in range(cg):
                    for j in range(k):
                        y[n, c, p] += x[n, g * cg + i, p * stride + j * dilation] * w[c, i, j]
    return y


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        (1, 0, 1, 1),
        (2, 1, 1, 1),
        (1, (2,), 2, 2),
        (3, ((1, 2),), 1, 2),
        (1, "same", 2, 1),
        (2, "same", 1, 1),
        (1, "valid", 1, 4),
    ],
)
def test_conv(stride: int, padding: Any, dilation: int, groups: int) -> None:
    x, w, b = draw(2, 4, 9), draw(8, 4 // groups, 3), draw(8)
    if padding == "same":
        total = max((-(-9 // stride) - 1) * stride + (2 * dilation + 1) - 9, 0)
        low, high = total // 2, total - total // 2
    else:
        low, high = {0: (0, 0), 1: (1, 1), (2,): (2, 2), ((1, 2),): (1, 2), "valid": (0, 0)}[padding]
    want = convolved(x, w, stride, low, high, dilation, groups) + b[:, None]
    got = run(
        lambda x, w, b: fx.conv(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups), x, w, b
    )
    close(got, want)
    if padding == "same" and stride == 1:
        assert got.shape == (2, 8, 9)


@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation", "groups"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 0, 2, 2, 2), (2, 2, 0, 1, 2)],
)
def test_conv_transpose_is_the_adjoint_of_conv(
    stride: int, padding: int, extra: int, dilation: int, groups: int
) -> None:
    """<conv(y, w), x> == <y, conv_transpose(x, w)> for every x and y: the definition of a transposed map."""
    x, w = draw(2, 4, 5), draw(4, 6 // groups, 3)
    size = (5 - 1) * stride - 2 * padding + dilation * 2 + extra + 1
    got = run(
        lambda x, w: fx.conv_transpose(
            x, w, stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=groups
        ),
        x,
        w,
    )
    assert got.shape == (2, 6, size)
    y = draw(2, 6, size)
    forward = convolved(y, w, stride, padding, padding, dilation, groups)[:, :, :5]
    close((forward * x).sum(), (y * got).sum(), 1e-4)


def test_conv_in_two_and_three_dimensions() -> None:
    x, w = draw(1, 2, 4, 5), draw(3, 2, 2, 3)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3), axis=(2, 3))
    close(run(lambda x, w: fx.conv(x, w), x, w), np.einsum("nchwij,ocij->nohw", windows, w))
    x, w = draw(1, 2, 4, 5, 3), draw(3, 2, 2, 3, 2)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3, 2), axis=(2, 3, 4))
    close(run(lambda x, w: fx.conv(x, w), x, w), np.einsum("nchwdijk,ocijk->nohwd", windows, w))
    t = trace(
        lambda x, w: fx.conv(x, w, padding="same"),
        [fx.f32["N", 2, "H", "W"], fx.f32[3, 2, 3, 3]],
        facts="H >= 1, W >= 1",
    )
    assert str(t.entry.outs[0].type) == "f32[N,3,H,W]"


def test_pooling() -> None:
    x = draw(2, 3, 6, 6)
    blocks = x.reshape(2, 3, 3, 2, 3, 2)
    close(run(lambda x: fx.nn.max_pool(x, 2), x), blocks.max((3, 5)))
    close(run(lambda x: fx.nn.min_pool(x, 2), x), blocks.min((3, 5)))
    close(run(lambda x: fx.nn.avg_pool(x, 2), x), blocks.mean((3, 5)))
    close(run(lambda x: fx.nn.sum_pool(x, 2), x), blocks.sum((3, 5)))
    close(run(lambda x: fx.nn.global_avg_pool(x), x), x.mean((2, 3)))
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(2, 3))
    close(run(lambda x: fx.nn.max_pool(x, 3, stride=1, padding=1), x), windows.max((4, 5)))
    zero = np.where(np.isfinite(windows), windows, 0)
    close(run(lambda x: fx.nn.avg_pool(x, 3, stride=1, padding=1), x), zero.mean((4, 5)))
    close(
        run(lambda x: fx.nn.avg_pool(x, 3, stride=1, padding=1, count_include_pad=False), x),
        zero.sum((4, 5)) / np.isfinite(windows).sum((4, 5)),
    )


@pytest.mark.parametrize("how", ["plain", "causal", "mask", "bias", "scale"])
def test_attention(how: str) -> None:
    q, k, v = draw(2, 3, 5, 4), draw(2, 1, 6, 4), draw(3, 6, 7)
    scores = q @ np.swapaxes(k, -1, -2) * (0.3 if how == "scale" else 0.5)
    mask, options = RNG.uniform(size=(5, 6)) > 0.3, {}
    mask[:, 0] = True
    if how == "causal":
        scores, options = np.where(np.tril(np.ones((5, 6), bool)), scores, -np.inf), {"is_causal": True}
    elif how == "mask":
        scores, options = np.where(mask, scores, -np.inf), {"mask": mask}
    elif how == "bias":
        scores, options = scores + mask, {"mask": mask.astype(np.float32)}
    elif how == "scale":
        options = {"scale": 0.3}
    p = np.exp(scores - scores.max(-1, keepdims=True))
    close(run(lambda q, k, v: fx.nn.attention(q, k, v, **options), q, k, v), p / p.sum(-1, keepdims=True) @ v)


def test_what_is_wrong_with_a_convolution() -> None:
    x, w = draw(1, 4, 9), draw(8, 4, 3)
    for f in (lambda: fx.conv(x, w[:, :3]), lambda: fx.conv(x, w, groups=3), lambda: fx.conv(x, w, stride=(1, 2)), lambda: fx.conv(x, w, padding="full"), lambda: fx.conv(x[0], w), lambda: fx.nn.max_pool(X, 2), lambda: fx.conv(x, w, padding=((1, 2, 3),)), lambda: fx.conv_transpose(x, w)):  # fmt: skip
        with pytest.raises(FluxError) as caught:
            f()
        assert caught.value.code == "FX0210"


# ---- random --------------------------------------------------------------------------------------------------------------------


def test_philox_known_answer() -> None:
    """The reference implementation's published answer for a zero counter and key (Random123, kat_vectors)."""
    assert [hex(v) for v in fx.random.bits(np.zeros(2, np.uint32), (4,))] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_keys() -> None:
    k = fx.random.key(7)
    np.testing.assert_array_equal(k, np.array([7, 0], np.uint32))
    np.testing.assert_array_equal(fx.random.key(2**40 + 3), [3, 256])
    for seed in (0, 7, -1, 2**40 + 3):
        np.testing.assert_array_equal(run(lambda s: fx.random.key(s), np.array(seed)), fx.random.key(seed))
    children = [
        fx.random.split(k, 5),
        *[fx.random.fold_in(k, i)[None] for i in range(-1, 5)],
        k[None],
        fx.random.bits(k, (2, 2)),
    ]
    every = np.concatenate(children)
    assert len(np.unique(every, axis=0)) == len(every)
    np.testing.assert_array_equal(run(lambda k, i: fx.random.fold_in(k, i), k, np.array(3)), fx.random.fold_in(k, 3))


def test_eager_and_traced_numbers_are_the_same() -> None:
    k = fx.random.key(3)
    for f in (lambda k: fx.random.normal(k, (5, 3)), lambda k: fx.random.uniform(k, (4,), dtype="f64"), lambda k: fx.random.permutation(k, 9), lambda k: fx.random.categorical(k, X), lambda k: fx.random.truncated_normal(k, -1, 2, (6,))):  # fmt: skip
        np.testing.assert_array_equal(run(f, k), f(k))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_uniform(dtype: str) -> None:
    x = fx.random.uniform(fx.random.key(1), (20000,), dtype=dtype)
    assert x.dtype == fx.dtype(dtype).numpy
    x = x.astype(np.float64)
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.01 and abs(x.std() - math.sqrt(1 / 12)) < 0.01
    y = fx.random.uniform(fx.random.key(1), (20000,), low=-1, high=3, dtype=dtype).astype(np.float64)
    assert y.min() >= -1 and y.max() < 3


def test_distributions_have_their_moments() -> None:
    n = 40000
    x = fx.random.normal(fx.random.key(2), (n,)).astype(np.float64)
    assert (
        abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and abs((x**3).mean()) < 0.06 and abs((x**4).mean() - 3) < 0.15
    )
    y = fx.random.normal(fx.random.key(2), (n,), loc=3.0, scale=0.5)
    close(y, 3 + 0.5 * x, 1e-5)
    assert abs(fx.random.bernoulli(fx.random.key(3), 0.3, (n,)).mean() - 0.3) < 0.01
    assert abs(fx.random.exponential(fx.random.key(4), (n,)).mean() - 1) < 0.02
    assert abs(fx.random.gumbel(fx.random.key(5), (n,)).mean() - 0.5772) < 0.03
    t = fx.random.truncated_normal(fx.random.key(6), -1.0, 2.0, (n,)).astype(np.float64)
    assert t.min() >= -1 and t.max() <= 2
    cdf = lambda v: (phi(v) - phi(-1.0)) / (phi(2.0) - phi(-1.0))  # noqa: E731
    for v in (-0.5, 0.0, 0.5, 1.5):
        assert abs((t < v).mean() - cdf(np.float64(v))) < 0.01
    r = fx.random.randint(fx.random.key(7), -3, 5, (n,))
    assert r.dtype == np.int64 and set(np.unique(r)) == set(range(-3, 5))
    assert abs(np.bincount(r + 3) / n - 1 / 8).max() < 0.01
    logits = np.log(np.array([[0.1, 0.2, 0.7]], np.float32)).repeat(n, axis=0)
    c = fx.random.categorical(fx.random.key(8), logits)
    assert abs(np.bincount(c) / n - [0.1, 0.2, 0.7]).max() < 0.01
    d = fx.nn.dropout(np.ones(n, np.float32), fx.random.key(9), 0.25)
    assert abs(d.mean() - 1) < 0.02 and set(np.unique(d)) == {0, np.float32(1 / 0.75)}


def test_permutations_and_choices() -> None:
    p = fx.random.permutation(fx.random.key(1), 100)
    np.testing.assert_array_equal(np.sort(p), np.arange(100))
    assert (p != np.arange(100)).sum() > 80
    x = fx.random.permutation(fx.random.key(1), X)
    np.testing.assert_array_equal(np.sort(x, axis=0), np.sort(X, axis=0))
    c = fx.random.choice(fx.random.key(2), 10, (10,), replace=False)
    np.testing.assert_array_equal(np.sort(c), np.arange(10))
    assert set(fx.random.choice(fx.random.key(2), np.array([5, 7]), (50,))) == {5, 7}
    t = trace(lambda x, k: fx.random.permutation(k, x), [fx.f32["N", 2], fx.u32[2]])
    assert str(t.entry.outs[0].type) == "f32[N,2]"


def test_a_seed_is_no_key() -> None:
    for f in (lambda: fx.random.normal(0, (3,)), lambda: fx.random.split(np.zeros(3, np.uint32)), lambda: fx.random.key(1.5), lambda: fx.random.fold_in(fx.random.key(0), X)):  # fmt: skip
        with pytest.raises(FluxError) as caught:
            f()
        assert caught.value.code == "FX0227"


# ---- model files -------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
MODEL = '''
from __future__ import annotations
from dataclasses import dataclass
import fluxir as fx

@dataclass
class Weights:
    w: fx.f32[4, 2]
    b: fx.f32[2]

@fx.model(facts="B >= 1, B % 2 == 0")
def main(x: fx.f32["B", 4], p: Weights, *, scale: fx.f32 = 1.0) -> {"y": fx.f32["B", 2]}:
    """Doc."""
    return {"y": x @ p.w * scale + p.b}

@fx.model(name="other")
def second(n: fx.i32[()]) -> fx.i32:
    return n + 1
'''


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_model_file_gives_its_entry_points(tmp_path: Path) -> None:
    file = fx.load_model(write(tmp_path / "m.py", MODEL))
    assert list(file.entries) == ["main", "other"]
    t = file.entry().trace()
    verify_module(t.module)
    assert t.arg_names == ("x", "p.w", "p.b", "scale") and t.result_names == ("y",)
    assert t.module.facts.describe() == ["B >= 1", "B % 2 == 0"]
    assert str(file.entry("other").trace().entry.outs[0].type) == "i32"
    with pytest.raises(FluxError) as caught:
        file.entry("third")
    assert caught.value.code == "FX0613" and "main, other" in (caught.value.help or "")


def test_a_text_file_gives_the_functions_nobody_calls(tmp_path: Path) -> None:
    t = trace(lambda x: x * 2, [fx.f32["B", 4]], name="double")
    file = fx.load_model(write(tmp_path / "m.fx", print_module(t.module)))
    again = file.entry().trace()
    assert again.module.digest == t.module.digest and again.out_tree == tree.LEAF and again.in_tree.leaf_count == 1


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("FX0316", "m.py", "x = 1"), ("FX0317", "m.py", "1 / 0"), ("FX0317", "m.py", "def f(:"), ("FX0808", "m.txt", ""), ("FX0101", "m.fx", "module"),
        ("FX0201", "m.py", "import numpy as np, fluxir as fx\nfx.add(np.ones(2), np.ones(2, int))"),
    ],
)  # fmt: skip
def test_files_that_are_no_models(tmp_path: Path, code: str, name: str, text: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(FluxError) as caught:
        fx.load_model(path)
    assert caught.value.code == code
    if name == "m.py" and code != "FX0316":
        assert caught.value.loc is not None and Path(caught.value.loc.file).name == "m.py"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.py", "none.fx"):
        with pytest.raises(FluxError) as caught:
            fx.load_model(tmp_path / name)
        assert caught.value.code == "FX0803"


def test_an_exception_in_the_model_is_shown_at_its_line(tmp_path: Path) -> None:
    text = "import fluxir as fx\n@fx.model\ndef main(x: fx.f32[3]):\n    return x.nothing\n"
    with pytest.raises(FluxError) as caught:
        fx.load_model(write(tmp_path / "m.py", text)).entry().trace()
    e = caught.value
    assert e.code == "FX0317" and "AttributeError" in e.message and e.loc is not None and e.loc.line == 4


def annotated(**notes: Any) -> Model:
    def f(x: Any, y: Any = 1.0) -> Any:
        return x + 1

    f.__annotations__ = notes
    return Model(f)


@pytest.mark.parametrize(
    ("code", "notes"),
    [
        ("FX0309", {}), ("FX0323", {"x": "no such name"}), ("FX0323", {"x": int}), ("FX0323", {"x": {"a": "float"}}), ("FX0323", {"x": fx.f32[3], "return": fx.f32[4]}), ("FX0323", {"x": fx.f32[3], "return": fx.f64[3]}),
        ("FX0323", {"x": fx.f32[3], "return": (fx.f32[3],)}),
    ],
)  # fmt: skip
def test_signatures_that_do_not_do(code: str, notes: Any) -> None:
    with pytest.raises(FluxError) as caught:
        annotated(**notes).trace()
    assert caught.value.code == code and caught.value.loc is not None


def test_a_model_is_still_a_function() -> None:
    m = annotated(x=fx.f32[3], **{"return": fx.f32[3]})
    np.testing.assert_array_equal(m(np.ones(3)), [2, 2, 2])
    assert m.trace().arg_names == ("x",)

    def variadic(*xs: Any) -> Any:
        return xs

    with pytest.raises(FluxError) as caught:
        fx.model(variadic).trace()
    assert caught.value.code == "FX0309"


def test_the_digits_model_gives_pytorchs_logits() -> None:
    t = fx.load_model(ROOT / "examples" / "digits.py").entry().trace()
    verify_module(t.module)
    with np.load(ROOT / "examples" / "digits_reference.npz") as r:
        (logits,) = interpret(t.module, [r["images"]])
        close(logits, r["logits"], 1e-4)
    assert [str(a.type) for a in t.entry.args] == ["f32[B,8,8]"] and t.result_names == ("y",)
