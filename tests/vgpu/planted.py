"""Planted bugs: kernels of `bugs/*.cu`, each compiled with its fault and without, and how they are launched.

    @planted("memory", "over_by_one")
    def over_by_one(rng, bug): ...

gives the launch of the twin with the fault (`bug`) or of the clean one. The source says what has to be found: `FIND kind` at the end
of a line there (one of several lines, where a fault has two ends), or on the kernel's signature where no line is to blame.
`bugs/by_hand.ptx` has what no compiler writes: kernels `name_bug` and `name_clean`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fluxir.runtime import vgpu
from tests.vgpu.case import HERE, Launch, Out, load
from tests.vgpu.cases_elementwise import F, Rng

I, U = np.int32, np.uint32


@dataclass(frozen=True)
class Bug:
    """`family`: the source file. `kind`: of the findings expected, at one of `lines` (none: anywhere)."""

    family: str
    kernel: str
    make: Callable[[Rng, bool], Launch]

    @functools.cached_property
    def expected(self) -> tuple[str, frozenset[int]]:
        return marks(self.family)[self.kernel]

    def twin(self, bug: bool) -> tuple[vgpu.Module, str, Launch]:
        """The module, the kernel's name in it and the launch, of the faulty twin or the clean one."""
        launch = self.make(np.random.default_rng(7), bug)
        if self.family == "by_hand":
            return load(HERE / "bugs" / "by_hand.ptx"), f"{self.kernel}_{'bug' if bug else 'clean'}", launch
        return load(HERE / "bugs" / f"{self.family}.{'bug' if bug else 'clean'}.ptx"), self.kernel, launch


BUGS: list[Bug] = []


def planted(family: str, *kernels: str) -> Callable[[Callable[[Rng, bool], Launch]], Callable[[Rng, bool], Launch]]:
    """Declare how kernels of a family are launched."""

    def declare(make: Callable[[Rng, bool], Launch]) -> Callable[[Rng, bool], Launch]:
        BUGS.extend(Bug(family, kernel, make) for kernel in kernels)
        return make

    return declare


@functools.cache
def marks(family: str) -> dict[str, tuple[str, frozenset[int]]]:
    """By kernel: the kind of finding, and the lines it may be at. Marks in a device function belong to the kernel after it."""
    hand = family == "by_hand"
    path = HERE / "bugs" / ("by_hand.ptx" if hand else f"{family}.cu")
    found: dict[str, tuple[str, frozenset[int]]] = {}
    name, kind, lines, pending = "", "", set[int](), set[int]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        begins = re.search(
            r"\.entry (\w+?)(?:_bug|_clean)\(" if hand else r"__global__ void (?:__\w+\([\w, ]*\) )*(\w+)\(", line
        )
        mark = re.search(r"// FIND ([\w-]+)", line)
        if begins:
            name, kind, lines, pending = begins[1], "", pending, set()
        elif "__device__ __noinline__" in line:
            name = ""
        if mark:
            kind = mark[1]
            (lines if name else pending).update(() if begins else (number,))
        if name and kind:
            found[name] = kind, frozenset(lines)
    return found


def ints(rng: Rng, n: int, low: int = 0, high: int = 64) -> np.ndarray:
    return rng.integers(low, high, n).astype(I)


# ---- memory.cu
@planted("memory", "over_by_one")
def over_by_one(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=100).astype(F)
    return Launch(2, 64, [x, Out(100), 100], {1: 2 * x})


@planted("memory", "last_block")
def last_block_bounds(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=150).astype(F)
    return Launch(3, 64, [x, Out(150), 150], {1: x + 1})


@planted("memory", "under")
def under(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 100).astype(F)
    return Launch(2, 64, [x, Out(100), 100], {1: x - np.concatenate([[0], x[:-1]])})


@planted("memory", "far_away")
def far_away(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=(4, 40)).astype(F)
    return Launch(4, 32, [x, Out((4, 20)), 20, 40], {1: x[:, :20]})


@planted("memory", "vector_tail")
def vector_tail(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 30).astype(F)
    out = np.full(8, 9, F)
    return Launch(1, 32, [x, out, 30], {1: np.concatenate([x[:28].reshape(7, 4).sum(1), [9]])})


@planted("memory", "red_zone")
def copied(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=64).astype(F)
    return Launch(1, 64, [x, Out(64), 64], {1: x})


@planted("memory", "null_pointer")
def null_pointer(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=64).astype(F)
    return Launch(1, 64, [None if bug else x, Out(64), 64], {1: x})


@planted("memory", "wrong_size")
def wrong_size(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=64).astype(F)
    return Launch(1, 64, [x, Out(32 if bug else 64), 64], {1: -x})


@planted("memory", "overflow")
def overflow(rng: Rng, bug: bool) -> Launch:
    x, pitch = rng.normal(size=1000).astype(F), 1 << 27
    return Launch(1, 32, [x, Out(32), 1000, pitch], {1: x[np.arange(32, dtype=np.int64) * pitch % 1000]})


@planted("memory", "negative_remainder")
def negative_remainder(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=50).astype(F)
    return Launch(1, 64, [x, Out(50), 50], {1: np.roll(x, 3)})


@planted("memory", "bad_index")
def bad_index(rng: Rng, bug: bool) -> Launch:
    x, index = rng.normal(size=50).astype(F), ints(rng, 40, 0, 50)
    index[[3, 30]] = [-1, 60]
    good = (index >= 0) & (index < 50)
    want = np.where(good, x[np.where(good, index, 0)], F(3))
    return Launch(1, 64, [x, index, np.full(40, 3, F), 40, 50], {2: want})


@planted("memory", "atomic_past_end")
def atomic_past_end(rng: Rng, bug: bool) -> Launch:
    x = np.arange(60, dtype=I) % 8
    return Launch(1, 64, [x, np.zeros(8, I), 60], {1: np.bincount(x)})


@planted("memory", "byte_too_many")
def byte_too_many(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 1, [np.frombuffer(b"no end", np.uint8), Out(1, I), 6], {1: [6]})


@planted("memory", "shared_static")
def shared_static(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x})


@planted("memory", "shared_store")
def shared_store(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: np.concatenate([[0], x[:-1]])})


@planted("memory", "shared_dynamic")
def shared_dynamic(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(32, I)], {1: x[31::-1]}, shared=4 * (48 if bug else 64))


@planted("memory", "local_array")
def local_array(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 9)
    return Launch(1, 32, [x, Out(32, I), 8], {1: x[:8].sum() * np.arange(32)})


@planted("memory", "constant_table")
def constant_table(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I), 16], {0: np.arange(32) % 16 + 1})


@planted("memory", "device_variable")
def device_variable(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I), 8], {0: np.arange(32) % 8 + 1})


@planted("memory", "parameter_array")
def parameter_array(rng: Rng, bug: bool) -> Launch:
    v = ints(rng, 4)
    return Launch(1, 32, [v.tobytes(), Out(32, I), 4], {1: v[np.arange(32) % 4]})


@planted("memory", "constant_store")
def constant_store(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 16, [np.zeros(16, I), 3], {0: np.full(16, 5)})


@planted("memory", "misaligned_word")
def misaligned_word(rng: Rng, bug: bool) -> Launch:
    x = rng.integers(0, 256, 260).astype(np.uint8)
    return Launch(1, 64, [x, Out(64, I)], {1: x[:256].view(I)})


@planted("memory", "misaligned_vector")
def misaligned_vector(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 68).astype(F)
    v = x[4:].reshape(16, 4)
    return Launch(1, 16, [x, Out(16)], {1: v[:, 0] + v[:, 3]})


@planted("memory", "misaligned_double")
def misaligned_double(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=32)
    return Launch(1, 32, [x.view(F), Out(32, np.float64)], {1: x})


@planted("memory", "misaligned_shared")
def misaligned_shared(rng: Rng, bug: bool) -> Launch:
    x = rng.integers(-99, 99, 130).astype(np.int16)
    return Launch(1, 64, [x, Out(64, I)], {1: x.view(I)[1:]})


@planted("memory", "misaligned_atomic")
def misaligned_atomic(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [np.zeros(16, np.uint8)], {0: np.array([0, 32, 0, 0], I).view(np.uint8)})


@planted("memory", "misaligned_store")
def misaligned_store(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(64, I)], {0: np.tile([1, 2], 32)})


@planted("memory", "accumulate")
def accumulate(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 50).astype(F)
    return Launch(1, 64, [x, Out(50) if bug else np.ones(50, F), 50], {1: 1 + x})


@planted("memory", "accumulate_atomic")
def accumulate_atomic(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(1, I) if bug else np.zeros(1, I)], {1: [x.sum()]})


@planted("memory", "scratch")
def scratch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64).astype(F)
    return Launch(1, 64, [x, Out(64), Out(64), 64], {1: x * x, 2: (x * x)[::-1]})


@planted("memory", "half_a_pair")
def half_a_pair(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out((64, 2), I), Out(64, I)], {1: np.stack([x, np.ones(64)], 1), 2: x[::-1] + 1})


@planted("memory", "padded_row")
def padded_row(rng: Rng, bug: bool) -> Launch:
    x = rng.normal(size=(8, 8)).astype(F)
    return Launch(1, 64, [x, Out((8, 8))], {1: x.T})


@planted("memory", "shared_sum")
def shared_sum(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(1, I)], {1: [x.sum()]})


@planted("memory", "local_tail")
def local_tail(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 8)
    return Launch(1, 32, [x, Out(32, I), 7], {1: x[np.arange(32) % 7]})


@planted("memory", "freed_array")
def freed_array(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64).astype(F)
    return Launch(1, 64, [x, Out(64)], {1: x}, freed=(0,) if bug else ())


@planted("memory", "freed_store")
def freed_store(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64).astype(F)
    return Launch(1, 64, [x, Out(64)], {1: x}, freed=(1,) if bug else ())


@planted("memory", "own_memory")
def own_memory(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4)
    return Launch(1, 8, [x, Out(8, I)], {1: x.sum() + 4 * np.arange(8)})


@planted("memory", "freed_twice")
def freed_twice(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 8, [Out(8, I)], {0: np.ones(8)})


# ---- shared.cu
def tiles(x: np.ndarray, first: int = 0) -> np.ndarray:
    """The sum over rows r of x[r], reversed, times r + first."""
    return (x[:, ::-1] * (np.arange(len(x)) + first)[:, None]).sum(0)


@planted("shared", "no_barrier")
def no_barrier(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128)
    return Launch(2, 128, [x, Out(128, I)], {1: x[::-1]})


@planted("shared", "tile_begin", "tile_end")
def tile_loop(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 256).reshape(4, 64)
    return Launch(1, 64, [x, Out(64, I), 4], {1: tiles(x)})


@planted("shared", "tree")
def tree(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128)
    return Launch(1, 128, [x, Out(1, I)], {1: [x.sum()]})


@planted("shared", "last_warp")
def last_warp(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(1, I)], {1: [x.sum()]})


@planted("shared", "double_buffer")
def double_buffer(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 320).reshape(5, 64)
    return Launch(1, 64, [x, Out(64, I), 5], {1: x[:, ::-1].sum(0)})


@planted("shared", "two_writers")
def two_writers(rng: Rng, bug: bool) -> Launch:
    x = np.arange(64, dtype=I)
    return Launch(1, 64, [x, Out(32, I)], {1: x[:32]})


@planted("shared", "flag")
def flag(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [ints(rng, 64, -3, 3), Out(1, I)], {1: [1]})


@planted("shared", "in_place")
def in_place(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: (x + np.roll(x, -1))[::-1]})


@planted("shared", "hillis_steele")
def hillis_steele(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x.cumsum()})


@planted("shared", "bins")
def bins(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(8, I)], {1: np.bincount(x % 8, minlength=8)})


@planted("shared", "bins_read_early", "bins_cleared_late")
def bins_of_64(rng: Rng, bug: bool) -> Launch:
    x = np.arange(64, dtype=I) // 2
    return Launch(1, 64, [x, Out(64, I)], {1: np.bincount(63 - x, minlength=64)})


@planted("shared", "broadcast")
def broadcast(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 1)
    return Launch(1, 64, [x, Out(64, I)], {1: np.full(64, x[0] * 7)})


@planted("shared", "reduced_twice")
def reduced_twice(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: np.full(64, x.sum() ** 2)})


@planted("shared", "warp_exchange")
def warp_exchange(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x[::-1]})


@planted("shared", "warp_barrier_too_weak")
def warp_barrier_too_weak(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]})


@planted("shared", "bytes")
def neighbouring_bytes(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64, 1 << 17, 1 << 18)
    return Launch(1, 64, [x, Out(64, I)], {1: x.astype(np.int16)})


@planted("shared", "transposed_in_place")
def transposed_in_place(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64).reshape(8, 8)
    return Launch(1, 64, [x, Out((8, 8), I)], {1: x.T})


@planted("shared", "named_barriers")
def named_barriers(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 64, [x, Out(32, I)], {1: x[::-1]})


# ---- order.cu
@planted("order", "shared_sums")
def shared_sums(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 256).reshape(4, 64)
    return Launch(4, 64, [x, np.zeros(64, I)], {1: x.sum(0)})


@planted("order", "counter")
def counter(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4)
    return Launch(4, 32, [x, np.zeros(1, I)], {1: [x.sum()]})


@planted("order", "stencil_in_place")
def stencil_in_place(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128)
    return Launch(2, 64, [x, np.zeros(128, I), 128], {1: np.append(x[:-1] + x[1:], 0)})


@planted("order", "rows_overlap")
def rows_overlap(rng: Rng, bug: bool) -> Launch:
    return Launch(4, 64, [np.zeros(4 * 40 + 1, I), 40], {0: np.append(np.arange(4).repeat(40), 0)})


@planted("order", "found")
def found(rng: Rng, bug: bool) -> Launch:
    return Launch(4, 64, [ints(rng, 256, -3, 4), np.zeros(1, I)], {1: [1]})


@planted("order", "last_block")
def last_block(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 6)
    return Launch(6, 32, [x, Out(6, I), Out(1, I)], {1: 3 * x, 2: [3 * x.sum()]})


@planted("order", "mailbox")
def mailbox(rng: Rng, bug: bool) -> Launch:
    want = 3 * np.arange(64)
    return Launch(2, 64, [Out(64, I), np.zeros(1, I), Out(64, I)], {0: want, 1: [1], 2: want})


@planted("order", "neighbours_result")
def neighbours_result(rng: Rng, bug: bool) -> Launch:
    want = np.arange(3).repeat(64)
    return Launch(3, 64, [Out(192, I), Out(192, I)], {0: want, 1: want + 1})


@planted("order", "sum_read_early")
def sum_read_early(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4)
    return Launch(4, 32, [x, np.zeros(1, I), Out(4, I)], {1: [x.sum()], 2: np.ones(4)})


@planted("order", "barrier_in_branch")
def barrier_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]})


@planted("order", "early_return")
def early_return(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 40)
    return Launch(1, 64, [x, Out(40, I), 40], {1: x[::-1]})


@planted("order", "barrier_in_loop")
def barrier_in_loop(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: 3 * x + 3})


@planted("order", "votes_in_branch")
def votes_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64, -4, 5)
    return Launch(1, 64, [x, Out(64, I)], {1: np.full(64, (x > 0).sum())})


@planted("order", "wrong_count", "crossed", "trapped", "asserted")
def copied_ints(rng: Rng, bug: bool) -> Launch:
    x = np.arange(64, dtype=I)
    return Launch(1, 64, [x, Out(64, I)], {1: x})


@planted("order", "never_set")
def never_set(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [np.zeros(1, I), Out(64, I)], {0: [1], 1: np.ones(64)})


@planted("order", "shuffle_absent")
def shuffle_absent(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(16, I)], {1: x[:16] + np.append(x[8:16], x[8:16])})


@planted("order", "shuffle_exited")
def shuffle_exited(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 20)
    return Launch(1, 32, [x, Out(1, I), 20], {1: [x.sum()]})


@planted("order", "shuffle_outsider")
def shuffle_outsider(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(16, I)], {1: np.roll(x[:16], -8)})


@planted("order", "ballot_in_branch")
def ballot_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32, -9, 10)
    bits = sum(1 << i for i in range(32) if x[i] > 5)
    return Launch(1, 32, [x, np.zeros(32, U)], {1: np.where(x > 0, bits, 0)})


@planted("order", "mask_without_me")
def mask_without_me(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: np.ones(32)})


@planted("order", "reduce_in_branch")
def reduce_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, np.zeros(32, I)], {1: np.where(np.arange(32) % 2, 0, x[::2].sum())})


@planted("order", "match_in_branch")
def match_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32, 0, 3)
    same = [sum(1 << j for j in range(20) if x[j] == x[i]) if i < 20 else 0 for i in range(32)]
    return Launch(1, 32, [x, np.zeros(32, U)], {1: same})


@planted("order", "warp_barrier_in_branch")
def warp_barrier_in_branch(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, np.zeros(32, I)], {1: np.append(x[7::-1], np.zeros(24))})


@planted("order", "recursion")
def recursion(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 4, [Out(4, I), 5], {0: np.full(4, 5)})


@planted("order", "too_many_threads", "too_large_block")
def thread_limits(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 2048 if bug else 64, [Out(2048 if bug else 64, I)], {0: np.arange(64)})


@planted("order", "too_much_shared")
def too_much_shared(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [Out(64, I)], {0: np.arange(64)}, shared=(1 << 20) if bug else 256)


# ---- copies.cu
@planted("copies", "no_wait", "not_committed", "own_wait_only")
def reversed_copy(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]})


@planted("copies", "wait_one_less", "refilled_early")
def tile_copies(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 320).reshape(5, 64)
    return Launch(1, 64, [x, Out(64, I), 5], {1: tiles(x, 1)})


@planted("copies", "read_too_soon")
def read_too_soon(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x})


@planted("copies", "overwritten", "left_behind")
def ones(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [ints(rng, 64), Out(64, I)], {1: np.ones(64)})


@planted("copies", "source_changed")
def source_changed(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {0: np.full(64, 5), 1: x})


@planted("copies", "misaligned_copy")
def misaligned_copy(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 16, [x, Out(16, I)], {1: x[::4]})


@planted("copies", "copied_past_end")
def copied_past_end(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 50)
    return Launch(1, 16, [x, Out(13, I), 50], {1: x[::4]})


@planted("copies", "copied_beside")
def copied_beside(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x})


@planted("copies", "matrix_rows", "matrix_past_end", "matrix_unwritten")
def matrix_rows(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 43)
    return Launch(1, 32, [x, Out(32, U)], {1: x[:32]})


@planted("copies", "product_in_branch")
def product_in_branch(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [np.zeros(32, U), Out(32)], {1: np.zeros(32)})


# ---- copies_90.cu
@planted(
    "copies_90", "wrong_phase", "not_awaited", "too_many_expected", "one_arrival_short", "barrier_not_made", "waited_for_others_phase",
)  # fmt: skip
def reversed_bulk(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]})


@planted("copies_90", "misaligned_bulk", "stored_before_read")
def bulk(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x})


@planted("copies_90", "bulk_past_end")
def bulk_past_end(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I), 256], {1: x})


@planted("copies_90", "cluster_unsynchronised", "cluster_bounds")
def cluster(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 128).reshape(2, 64)
    return Launch(2, 64, [x, Out((2, 64), I)], {1: x[::-1]})


# ---- by_hand.ptx
@planted(
    "by_hand", "wrong_space", "wrong_window", "constant", "local_part", "table", "red_past_end", "parameters",
)  # fmt: skip
def numbered(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I)], {0: np.arange(32)})


@planted("by_hand", "two_barriers", "guarded")
def two_warps(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 64, [Out(64, I)], {0: np.arange(64)})


@planted("by_hand", "vector_store")
def vector_store(rng: Rng, bug: bool) -> Launch:
    return Launch(1, 32, [Out(32, I)], {0: np.arange(32)}, shared=1024)
