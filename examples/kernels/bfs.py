"""Breadth-first search: how many edges each node of a graph is away from the first, one level a launch. After Rodinia's bfs."""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx


@fx.kernel
def level(starts: fx.i32["S"], edges: fx.i32["E"], distance: fx.i32["N"], now: fx.i32, more: fx.i32[1]):
    """Nodes at the distance `now` reach their neighbours. Several may reach one: all of them store the same."""
    node = fx.gpu.global_id.x
    if node < len(distance) and fx.gpu.atomic_or(distance, node, 0) == now:
        for e in range(starts[node], starts[node + 1]):
            if fx.gpu.atomic_cas(distance, edges[e], -1, now + 1) == -1:
                fx.gpu.atomic_or(more, 0, 1)


def graph(n: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """A random graph in compressed form: node i has the edges starts[i] to starts[i + 1]."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 2 * degree, n)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    return starts, rng.integers(0, n, starts[-1]).astype(np.int32)


def reference(starts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    distance = np.full(len(starts) - 1, -1)
    distance[0], queue = 0, [0]
    for node in queue:
        for other in edges[starts[node] : starts[node + 1]]:
            if distance[other] < 0:
                distance[other] = distance[node] + 1
                queue.append(other)
    return distance


def run(on: str, n: int = 1000, degree: int = 2, block: int = 128) -> int:
    """Search a graph of n nodes; returns the number of levels."""
    starts, edges = graph(n, degree)
    distance, now = np.full(n, -1, np.int32), 0
    distance[0] = 0
    while True:
        more = np.zeros(1, np.int32)
        level.on(on)[blocks(n, block), block](starts, edges, distance, now, more)
        if not more[0]:
            break
        now += 1
    check("bfs", distance, reference(starts, edges))
    return now


if __name__ == "__main__":
    print(f"{run(device())} levels")
