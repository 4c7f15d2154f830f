"""Launches of the planted bugs of `bugs/hostile.cu`: see `planted`."""

from __future__ import annotations

import numpy as np

from tests.vgpu.case import Launch, Out
from tests.vgpu.cases_elementwise import F, Rng
from tests.vgpu.planted import I, ints, planted


# ---- partial tiles
@planted("hostile", "tile_columns")
def tile_columns(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=(13, 13)).astype(F)
    return Launch((2, 2), (8, 8), [x, Out((13, 13)), 13], {1: x.T})


@planted("hostile", "tile_not_filled")
def tile_not_filled(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 8 * 6).astype(F).reshape(8, 6)
    return Launch(1, 64, [x, Out(8), 6], {1: x.sum(1)})


@planted("hostile", "ragged_row")
def ragged_row(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64).reshape(8, 8)
    return Launch(1, 64, [x, Out(8, I)], {1: x.sum(1) + 1})


@planted("hostile", "sum_of_100")
def sum_of_100(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 100)
    return Launch(1, 100, [x, Out(1, I), 100], {1: [x.sum()]})


@planted("hostile", "bins_all_but_one")
def bins_all_but_one(rng: Rng, bug: bool) -> Launch:
    x = 63 - np.arange(64, dtype=I) // 2 * 2
    return Launch(1, 64, [x, Out(64, I)], {1: np.bincount(x, minlength=64)})


@planted("hostile", "partial_warp", "warps_rounded_down")
def forty_threads(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 40)
    return Launch(1, 40, [x, Out(1, I), 40], {1: [x.sum()]})


# ---- places
@planted("hostile", "counts_down")
def counts_down(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 10)
    return Launch(1, 4, [x, Out(4, I), 10], {1: np.full(4, x.sum())})


@planted("hostile", "store_by_offset")
def store_by_offset(rng: Rng, bug: bool) -> Launch:
    offset = 2 if bug else 4
    want = np.concatenate([np.zeros(4), np.tile([1, 2, 3, 4], 8)])
    return Launch(1, 8, [np.zeros(36, F), offset], {0: want})


@planted("hostile", "three_of_four")
def three_of_four(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 8, [Out((8, 4)), Out(8)], {0: np.tile([1, 2, 3, 4], 8), 1: np.full(8, 6)})


@planted("hostile", "callers_array")
def callers_array(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I), 8], {0: np.arange(32) % 8})


@planted("hostile", "static_neighbour")
def static_neighbour(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x[::-1] + 1})


@planted("hostile", "static_into_dynamic")
def static_into_dynamic(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x + 1}, shared=128)


@planted("hostile", "carved_wrong")
def carved_wrong(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I), 32], {1: x[::-1] + x}, shared=32 * 12)


@planted("hostile", "device_neighbour")
def device_neighbour(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I), 1], {0: np.full(32, 6)})


@planted("hostile", "shared_as_global", "global_as_shared")
def confused(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x})


@planted("hostile", "host_pointer")
def host_pointer(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x.ctypes.data if bug else x, Out(32, I)], {1: x})


@planted("hostile", "wrong_row_pitch")
def wrong_row_pitch(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=(4, 40)).astype(F)
    return Launch(1, 64, [x, Out((4, 38)), 4, 38, 40], {1: x[:, :38]})


@planted("hostile", "shared_freed")
def shared_freed(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [Out(64, I)], {0: np.arange(64)[::-1]})


@planted("hostile", "freed_inside")
def freed_inside(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 4, [Out(4, I)], {0: np.ones(4)})


# ---- shared memory
@planted("hostile", "warp_synchronous")
def warp_synchronous(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(1, I)], {1: [x.sum()]})


@planted("hostile", "second_round")
def second_round(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4 * 64).reshape(4, 64)
    x[:, 40] = 63
    return Launch(1, 64, [x, Out(64, I), 4], {1: np.full(64, 4)})


@planted("hostile", "only_wide_blocks")
def only_wide_blocks(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]}, shared=256)


@planted("hostile", "rows_of_33")
def rows_of_33(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x + np.append(x[1:], 0)})


@planted("hostile", "plain_beside_atomic")
def plain_beside_atomic(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: np.full(64, x.max())})


@planted("hostile", "three_stages")
def three_stages(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 6 * 64).reshape(6, 64)
    return Launch(1, 64, [x, Out(64, I), 6], {1: x[:, ::-1].sum(0)})


@planted("hostile", "two_barriers_crossed")
def two_barriers_crossed(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 64, [x, Out(32, I)], {1: x[::-1]})


@planted("hostile", "tile_groups")
def tile_groups(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[np.arange(64) ^ 15]})


# ---- barriers and votes
@planted("hostile", "trips_by_warp")
def trips_by_warp(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I), 3], {1: 3 * x[::-1] + 3})


@planted("hostile", "barrier_past_break")
def barrier_past_break(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64, 0, 6)
    return Launch(1, 64, [x, Out(64, I), 3], {1: 3 * x})


@planted("hostile", "source_has_left")
def source_has_left(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: np.full(32, x[5])})


@planted("hostile", "any_of_odd")
def any_of_odd(rng: Rng, bug: bool) -> Launch:
    x = np.zeros(32, I)
    return Launch(1, 32, [x, np.zeros(32, I)], {1: np.zeros(32)})


@planted("hostile", "not_cooperative")
def not_cooperative(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x}, options={} if bug else {"cooperative": True})


@planted("hostile", "grid_sync_by_some")
def grid_sync_by_some(rng: Rng, bug: bool) -> Launch:
    want = (np.arange(4).repeat(32) + 32 // 32) % 4
    return Launch(
        4, 32, [Out(128, I), Out(128, I)], {0: np.arange(4).repeat(32), 1: want}, options={"cooperative": True}
    )


# ---- between blocks
@planted("hostile", "reversed_in_place")
def reversed_in_place(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128)
    return Launch(2, 64, [x, 128], {0: x[::-1]})


@planted("hostile", "first_and_last")
def first_and_last(rng: Rng, bug: bool) -> Launch:
    return Launch(6000, 32, [Out(1, I)], {0: [1]})


@planted("hostile", "cleared_by_first")
def cleared_by_first(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128)
    return Launch(4, 32, [x, np.zeros(1, I)], {1: [x.sum()]})


@planted("hostile", "last_block_no_barrier")
def last_block_no_barrier(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 5 * 64).reshape(5, 64)
    return Launch(5, 64, [x, Out((5, 64), I), Out(64, I)], {1: 3 * x, 2: 3 * x.sum(0)})


@planted("hostile", "announced_first")
def announced_first(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 5)
    return Launch(5, 32, [x, np.zeros(5, I), Out(1, I)], {1: 3 * x, 2: [3 * x.sum()]})


@planted("hostile", "one_waits_all_read")
def one_waits_all_read(rng: Rng, bug: bool) -> Launch:
    return Launch(2, 64, [Out(64, I), np.zeros(1, I), Out(64, I)], {0: np.arange(64) * 3, 1: [1], 2: np.arange(64) * 3})


@planted("hostile", "lock_without_fence")
def lock_without_fence(rng: Rng, bug: bool) -> Launch:
    return Launch(5, 32, [np.zeros(1, I)], {0: [5]})


@planted("hostile", "two_locks")
def two_locks(rng: Rng, bug: bool) -> Launch:
    return Launch(2, 32, [np.zeros(2, I), np.zeros(1, I)], {1: [2]})


@planted("hostile", "look_back")
def look_back(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4 * 32)
    sums = x.reshape(4, 32).sum(1).cumsum()
    return Launch(4, 32, [x, Out(4, I), np.zeros(4, I), Out(128, I)],
                  {1: sums, 2: np.ones(4), 3: np.append(0, sums[:-1]).repeat(32)})  # fmt: skip


@planted("hostile", "barrier_of_blocks")
def barrier_of_blocks(rng: Rng, bug: bool) -> Launch:
    blocks = np.arange(4).repeat(32)
    return Launch(4, 32, [np.zeros(1, I), Out(128, I), Out(128, I)], {0: [4], 1: blocks, 2: (blocks + 1) % 4})
