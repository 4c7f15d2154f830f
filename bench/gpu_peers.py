"""PyTorch and Triton on the tasks of `gpu_check`: each in its own best-known form, timed by CUDA events. Used on machines with a
GPU alone; nothing here is imported by FluxIR or its tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

Peer = Callable[[str, Sequence[Any], Any, float, int], float]
"""(function, arrays, our result, tolerance, rounds) -> seconds."""


def installed() -> dict[str, Peer]:
    """The libraries that are there and see a GPU, by name."""
    if find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    found: dict[str, Peer] = {"torch": with_torch}
    if find_spec("triton") is not None:
        found["triton"] = with_triton
    return found


def _timed(work: Callable[[], Any], want: Any, rtol: float, rounds: int) -> float:
    import torch

    out = work()  # compiles
    torch.cuda.synchronize()
    got = out.float().cpu().numpy()
    scale = float(np.abs(want).max()) or 1.0
    np.testing.assert_allclose(got, np.asarray(want, np.float32), rtol=10 * rtol, atol=10 * rtol * scale)
    best = float("inf")
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(rounds):
            work()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3 / rounds)
    return best


def with_torch(name: str, arrays: Sequence[Any], want: Any, rtol: float, rounds: int) -> float:
    import torch
    from torch.nn import functional

    calls: dict[str, Callable[..., Any]] = {
        "add": lambda x, y: x + y,
        "row_sum": lambda x: x.sum(1),
        "total": lambda x: x.sum(),
        "softmax": lambda x: torch.softmax(x, 1),
        "layer_norm": lambda x, g, b: functional.layer_norm(x, g.shape, g, b),
        "transpose": lambda x: (x.T * 2).contiguous(),
        "matmul": lambda a, b: a @ b,
        "gelu_mlp": lambda x, w, b: functional.gelu(torch.addmm(b, x, w), approximate="tanh"),
        "attention": functional.scaled_dot_product_attention,
    }
    tensors = [torch.from_numpy(a).cuda() for a in arrays]
    return _timed(lambda: calls[name](*tensors), want, rtol, rounds)


def with_triton(name: str, arrays: Sequence[Any], want: Any, rtol: float, rounds: int) -> float:
    import torch
    import triton
    import triton.language as tl

    from tests.vgpu.kernels import triton_kernels as kernels

    given = [torch.from_numpy(a).cuda() for a in arrays]
    out = torch.empty(want.shape, device="cuda", dtype=torch.float32)

    def add() -> Any:
        kernels.add[(triton.cdiv(out.numel(), 1024),)](*given, out, out.numel(), BLOCK=1024)
        return out

    def softmax() -> Any:
        rows, columns = out.shape
        kernels.softmax[(rows,)](*given, out, columns, BLOCK=triton.next_power_of_2(columns))
        return out

    def layer_norm() -> Any:
        rows, columns = out.shape
        kernels.layernorm[(rows,)](*given, out, columns, 1e-5, BLOCK=triton.next_power_of_2(columns))
        return out

    def matmul_f16() -> Any:
        (m, k), n = given[0].shape, given[1].shape[1]
        grid = (triton.cdiv(m, 128), triton.cdiv(n, 128))
        kernels.matmul[grid](*given, out, m, n, k, M=128, N=128, K=32, ACC=tl.float32, num_warps=8, num_stages=3)
        return out

    calls = {"add": add, "softmax": softmax, "layer_norm": layer_norm, "matmul_f16": matmul_f16}
    return _timed(calls[name], want, rtol, rounds)
