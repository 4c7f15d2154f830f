"""The tasks of `gpu_check`: what is computed, on arrays of which sizes, what it costs at least, and what it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fluxir as fx

Arrays = list[Any]


@dataclass(frozen=True)
class Task:
    """`inputs(rng, size)` makes the arrays; `want(*arrays)` is the result in f64; `work(arrays)` gives (flops, bytes that must
    move). `peers`: by library, the name of its function in `gpu_peers`."""

    name: str
    ours: Callable[..., Any]
    want: Callable[..., Any]
    inputs: Callable[[Any, tuple[int, ...]], Arrays]
    small: tuple[int, ...]
    large: tuple[int, ...]
    work: Callable[[Sequence[Any]], tuple[int, int]]
    rtol: float = 1e-4
    peers: dict[str, str] = field(default_factory=dict)

    def check(self, got: Any, arrays: Sequence[Any]) -> None:
        want = self.want(*[np.asarray(a, np.float64) for a in arrays])
        scale = float(np.abs(want).max()) or 1.0
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=self.rtol, atol=self.rtol * scale)


def normal(
    kind: str, *shapes: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> Callable[[Any, tuple[int, ...]], Arrays]:
    def make(rng: Any, size: tuple[int, ...]) -> Arrays:
        return [rng.standard_normal(shape(size), np.float32).astype(kind) for shape in shapes]

    return make


def moved(arrays: Sequence[Any], result: int) -> int:
    return sum(a.nbytes for a in arrays) + result


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    d = x - x.mean(1, keepdims=True)
    return d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * gain + bias


def attention(q: Any, k: Any, v: Any) -> Any:
    """[heads, length, width] each."""
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v


def gelu_mlp(x: Any, w: Any, b: Any) -> Any:
    h = x @ w + b
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def _whole(s: tuple[int, ...]) -> tuple[int, ...]:
    return s


def _row(s: tuple[int, ...]) -> tuple[int, ...]:
    return s[-1:]


def _left(s: tuple[int, ...]) -> tuple[int, ...]:
    return s[0], s[1]


def _right(s: tuple[int, ...]) -> tuple[int, ...]:
    return s[1], s[2]


def _product(arrays: Sequence[Any]) -> tuple[int, int]:
    (m, k), n = arrays[0].shape, arrays[1].shape[1]
    return 2 * m * n * k, moved(arrays, 4 * m * n)


TASKS: tuple[Task, ...] = (
    Task("add", lambda x, y: x + y, lambda x, y: x + y, normal("f4", _whole, _whole), (5000,), (1 << 26,),
         lambda a: (a[0].size, moved(a, a[0].nbytes)), peers={"torch": "add", "triton": "add"}),
    Task("sum of rows", lambda x: fx.sum(x, axis=1), lambda x: x.sum(1), normal("f4", _whole), (20, 300), (8192, 8192),
         lambda a: (a[0].size, moved(a, 4 * a[0].shape[0])), peers={"torch": "row_sum"}),
    Task("sum", lambda x: fx.sum(x), lambda x: x.sum(), normal("f4", _whole), (20_000,), (1 << 26,),
         lambda a: (a[0].size, moved(a, 4)), rtol=1e-3, peers={"torch": "total"}),
    Task("softmax", lambda x: fx.nn.softmax(x, axis=1), softmax, normal("f4", _whole), (20, 300), (8192, 4096),
         lambda a: (5 * a[0].size, moved(a, a[0].nbytes)), peers={"torch": "softmax", "triton": "softmax"}),
    Task("layer norm", fx.nn.layer_norm, layer_norm, normal("f4", _whole, _row, _row), (20, 256), (8192, 4096),
         lambda a: (8 * a[0].size, moved(a, a[0].nbytes)), peers={"torch": "layer_norm", "triton": "layer_norm"}),
    Task("transpose", lambda x: fx.transpose(x) * 2, lambda x: 2 * x.T, normal("f4", _whole), (70, 90), (8192, 8192),
         lambda a: (a[0].size, moved(a, a[0].nbytes)), peers={"torch": "transpose"}),
    Task("matmul f32", lambda a, b: a @ b, lambda a, b: a @ b, normal("f4", _left, _right), (70, 40, 50), (4096, 4096, 4096),
         _product, rtol=1e-3, peers={"torch": "matmul"}),
    Task("matmul f16", lambda a, b: a @ b, lambda a, b: a @ b, normal("f2", _left, _right), (64, 64, 64), (4096, 4096, 4096),
         _product, rtol=2e-2, peers={"torch": "matmul", "triton": "matmul_f16"}),
    Task("dense layer with gelu", lambda x, w, b: fx.nn.gelu(x @ w + b), gelu_mlp, normal("f4", _left, _right, _row),
         (33, 40, 50), (4096, 1024, 4096), lambda a: (_product(a)[0], _product(a)[1]), rtol=1e-3, peers={"torch": "gelu_mlp"}),
    Task("attention", lambda q, k, v: fx.nn.softmax(q @ fx.transpose(k, (0, 2, 1)) / np.float32(np.sqrt(q.shape[-1]))) @ v,
         attention, normal("f4", _whole, _whole, _whole), (2, 33, 16), (64, 1024, 64),
         lambda a: (4 * a[0].shape[0] * a[0].shape[1] ** 2 * a[0].shape[2], moved(a, a[0].nbytes)), rtol=1e-3,
         peers={"torch": "attention"}),
)  # fmt: skip
