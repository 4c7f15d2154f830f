"""Order between blocks, told of warps: what `global_races.BlockOrder` keeps, step by step."""

from __future__ import annotations

import numpy as np

from fluxir.runtime.vgpu.global_races import BlockOrder, once


def warp(block: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([block]), np.array([number])


def seen(order: BlockOrder, stamp: np.ndarray, writer: int, block: int, number: int) -> bool:
    """Whether a warp of `block` sees what a warp of the block `writer` did, by its stamp."""
    return bool(order.ordered(np.array([writer]), stamp, *warp(block, number))[0])


def written(order: BlockOrder, block: int, number: int) -> np.ndarray:
    return order.stamp(*warp(block, number), atomic=False)


def test_a_warp_publishes_what_it_has_fenced() -> None:
    order = BlockOrder(blocks=2, warps=2)
    early = written(order, 0, 1)
    order.fence(*warp(0, 1))
    late = written(order, 0, 1)
    order.release(*warp(0, 1))
    order.acquire(*warp(1, 0))
    assert seen(order, early, 0, 1, 0) and not seen(order, late, 0, 1, 0)
    assert not seen(order, early, 0, 1, 1)  # its neighbour has not been told
    order.meet(np.array([1]))
    assert seen(order, early, 0, 1, 1)


def test_what_others_wrote_needs_a_barrier_before_the_fence_or_after_theirs() -> None:
    for steps, expected in (("fence0 release", False), ("meet fence0 release", True), ("fence1 meet release", True),
                            ("fence1 release", False), ("fence0 meet release", False)):  # fmt: skip
        order = BlockOrder(blocks=2, warps=2)
        stamp = written(order, 0, 1)
        for step in steps.split():
            if step == "meet":
                order.meet(np.array([0]))
            elif step == "release":
                order.release(*warp(0, 0))
            else:
                order.fence(*warp(0, int(step[-1])))
        order.acquire(*warp(1, 0))
        assert seen(order, stamp, 0, 1, 0) is expected, steps


def test_an_acquire_before_the_release_sees_nothing() -> None:
    order = BlockOrder(blocks=2, warps=1)
    stamp = written(order, 0, 0)
    order.fence(*warp(0, 0))
    order.acquire(*warp(1, 0))
    order.release(*warp(0, 0))
    assert not seen(order, stamp, 0, 1, 0)


def test_an_atomic_after_a_fence_is_a_release_itself() -> None:
    order = BlockOrder(blocks=2, warps=1)
    relaxed = order.stamp(*warp(0, 0), atomic=True)
    order.fence(*warp(0, 0))
    order.release(*warp(0, 0))
    releasing = order.stamp(*warp(0, 0), atomic=True)
    order.acquire(*warp(1, 0))
    assert seen(order, releasing, 0, 1, 0) and seen(order, relaxed, 0, 1, 0)


def test_a_cluster_sees_what_its_blocks_did_before_their_barrier() -> None:
    order = BlockOrder(blocks=4, warps=2)
    stamp = written(order, 0, 1)
    order.meet_in_cluster(np.array([0, 1]))
    assert seen(order, stamp, 0, 1, 0) and not seen(order, stamp, 0, 2, 0)


def test_periods_beyond_the_last_count_as_ordered() -> None:
    order = BlockOrder(blocks=2, warps=1)
    for _ in range(2 * order.periods):
        written(order, 0, 0)
        order.fence(*warp(0, 0))
    assert seen(order, written(order, 0, 0), 0, 1, 0)


def test_fences_without_accesses_use_up_no_periods() -> None:
    order = BlockOrder(blocks=2, warps=1)
    for _ in range(2 * order.periods):
        order.fence(*warp(0, 0))
        order.meet(np.array([0]))
    assert not seen(order, written(order, 0, 0), 0, 1, 0)


def test_warps_are_named_once() -> None:
    blocks, warps = once(np.array([3, 3, 0, 3]), np.array([1, 1, 31, 0]))
    assert blocks.tolist() == [0, 3, 3] and warps.tolist() == [31, 0, 1]
