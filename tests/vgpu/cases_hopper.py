"""Cases of `kernels/hopper.cu`: sm_90a."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.runtime import vgpu
from tests.vgpu.case import Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng
from tests.vgpu.cases_tensor import H, product, small

I = np.int32


@case("hopper", "bulk_copy", (2,), deep=[(40,)])
def bulk_copy(rng: Rng, grid: int) -> Launch:
    x = rng.normal(size=(grid, 256)).astype(F)
    return Launch(grid, 64, [x, Out(x.shape)], {1: 2 * x[:, ::-1]})


@case("hopper", "bulk_add", (3,), deep=[(40,)])
def bulk_add(rng: Rng, grid: int) -> Launch:
    x, start = rng.integers(-99, 99, (grid, 128)).astype(I), rng.integers(-99, 99, 128).astype(I)
    return Launch(grid, 128, [x, start], {1: start + x.sum(0)})


@case("hopper", "ring", (1,), (8,), deep=[(50,)])
def ring(rng: Rng, tiles: int) -> Launch:
    x = rng.integers(-9, 9, (tiles, 64)).astype(F)
    return Launch(1, 96, [x, Out(64), tiles], {1: (x[:, ::-1] * np.arange(1, tiles + 1)[:, None]).sum(0)})


@case("hopper", "cluster_rotate", (1,), (3,), deep=[(20,)])
def cluster_rotate(rng: Rng, clusters: int) -> Launch:
    x = rng.integers(-99, 99, (clusters, 4, 64)).astype(I)
    want = np.roll(x, -1, axis=1)[:, :, ::-1] + 1000 * np.arange(4)[:, None] + 4
    return Launch(4 * clusters, 64, [x, Out(x.shape, I)], {1: want})


@case("hopper", "cluster_histogram", (1, 1), (2, 900), deep=[(8, 20_000)])
def cluster_histogram(rng: Rng, clusters: int, n: int) -> Launch:
    x = rng.integers(0, 256, n).astype(np.uint8)
    return Launch(2 * clusters, 64, [x, np.zeros(256, np.uint32), n], {1: np.bincount(x, minlength=256)})


@case("hopper", "tensor_copy", (16, 32), (40, 52), deep=[(200, 300)])
def tensor_copy(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.normal(size=(rows, columns)).astype(F)

    def tensor_map(i: int) -> Any:  # f32 in boxes of 16 x 32
        return lambda there: vgpu.tensor_map(7, 2, there[i].address, (columns, rows), (4 * columns,), (32, 16))

    grid = (-(-columns // 32), -(-rows // 16))
    return Launch(grid, 64, [x, Out(x.shape), tensor_map(0), tensor_map(1)], {1: x + F(1)}, memory=2)


@case("hopper", "wgmma_f16", (32,), (96,), deep=[(512,)])
def wgmma_f16(rng: Rng, k: int) -> Launch:
    a, b = small(rng, 64, k, dtype=H), small(rng, 32, k, dtype=H)
    return Launch(1, 128, [a, b, Out((64, 32)), k], {2: product(a, b.T)})


@case("hopper", "stmatrix")
def stmatrix(rng: Rng) -> Launch:
    x = rng.integers(0, 2**32, (2, 32)).astype(np.uint32)
    tiles = x.view(np.uint16).reshape(2, 8, 8)  # lane 4 i + j holds columns 2 j and 2 j + 1 of row i
    stored = np.concatenate([tiles.ravel(), tiles.swapaxes(1, 2).ravel()]).view(np.uint32)
    elected = np.arange(32) == 0
    return Launch(1, 32, [x, Out(160, np.uint32)], {1: np.concatenate([stored, elected])})


@case("hopper", "registers")
def registers(rng: Rng) -> Launch:
    x = rng.integers(-99, 99, 256).astype(I)
    return Launch(1, 256, [x, Out(256, I)], {1: np.concatenate([x[:128] + 1, x[128:] * 2])})
