"""The meaning of a GPU kernel: blocks one after the other, the threads of a block in turns.

Each thread is an interpreter of its own over the same memory. A thread runs until it ends or waits at an op at which
threads meet (`MEETINGS`: barriers, shuffles, votes); then the next one runs. When all threads that an op waits for are
there, each gets what the op's meaning says, and they all go on. Threads that wait for each other in different places, or
that an ended thread keeps waiting, are an error (FX0516). A kernel with a grid barrier has all its blocks alive at once.
Exactly one thread runs at any time and the order is fixed, so the result is deterministic; a kernel that relies on luck
is found by the virtual GPU, not here.

A kernel's attribute `grid` (`block`) is its number of blocks (threads of a block) along x, y and z, or empty where the
launch says it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Func, Op, Value
from fluxir.ir.interp import Interpreter
from fluxir.ir.types import MemType

WARP = 32
MEETINGS: set[str] = set()
"""Names of the ops at which threads meet; whoever declares one enters it."""
SHARED_BYTES = "shared_bytes"
"""The size symbol that holds the bytes of dynamic shared memory of the launch."""


@dataclass(frozen=True)
class Meeting:
    """What a thread waits for: at which op, who meets there, which lanes take part, what it has brought."""

    op: Op
    who: str  # "warp", "block", "grid", or "active": whoever is there when nobody else can go on
    mask: int | None
    given: Sequence[Any]
    resolve: Callable[[Mapping[int, Sequence[Any]]], Mapping[int, Sequence[Any]]]


class SimtThread(Interpreter):
    """One GPU thread: knows its indices, shares the block's `shared` memories, and meets the others."""

    def __init__(
        self,
        parent: Interpreter,
        shape: dict[str, tuple[int, ...]],
        at: dict[str, tuple[int, ...]],
        shared: dict[Any, Any],
    ) -> None:
        super().__init__(parent.module, parent.dims)
        self.depth = parent.depth
        self._index = {
            "block_dim": shape["block"],
            "grid_dim": shape["grid"],
            "block_id": at["block"],
            "thread_id": at["thread"],
        }
        x, y, z = at["thread"]
        self.number = x + shape["block"][0] * (y + shape["block"][1] * z)
        self.lane = self.number % WARP
        self._shared = shared
        self.copies: list[tuple[Any, Any]] = []
        self._groups: list[list[tuple[Any, Any]]] = []
        self.meeting: Meeting | None = None
        self.results: Sequence[Any] = ()
        self.done = False
        self._given_up = False
        self.failure: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._worker: threading.Thread | None = None

    # ---- what the ops ask for
    def simt_index(self, name: str, axis: int) -> Any:
        return np.int64(self._index[name][axis])

    def simt_meet(self, op: Op, who: str, mask: int | None, given: Sequence[Any], resolve: Any) -> Sequence[Any]:
        """Wait for the others; returns what this thread gets."""
        self.meeting = Meeting(op, who, mask, given, resolve)
        self._back.release()
        self._go.acquire()
        if self._given_up:
            raise SystemExit
        return self.results

    def dynamic_shared(self, op: Op, offset: int, t: MemType) -> Any:
        size = self.dims.get(SHARED_BYTES, 0)
        if SHARED_BYTES not in self._shared:
            self._shared[SHARED_BYTES] = np.zeros(size, np.uint8)
        if offset > size:
            raise error(
                "FX0515",
                f"dynamic shared memory is used from byte {offset} on, the launch gives {size} bytes",
                loc=op.loc,
            )
        rest = self._shared[SHARED_BYTES][offset:]
        return rest[: len(rest) // t.dtype.itemsize * t.dtype.itemsize].view(t.dtype.numpy)

    def commit_copies(self) -> list[Any]:
        self._groups.append(self.copies)
        self.copies = []
        return []

    def wait_copies(self, pending: int) -> list[Any]:
        while len(self._groups) > pending:
            for target, value in self._groups.pop(0):
                target[...] = value
        if not pending:
            for target, value in self.copies:
                target[...] = value
            self.copies = []
        return []

    def step(self, op: Op, env: dict[Value, Any]) -> Sequence[Any]:
        if op.name == "alloc" and op.attrs["type"].space == "shared":
            if op not in self._shared:
                self._shared[op] = super().step(op, env)
            return self._shared[op]  # type: ignore[no-any-return]
        return super().step(op, env)

    # ---- taking turns
    def resume(self, kernel: Func, args: Sequence[Any]) -> None:
        """Run until the thread waits or ends; raises what it raised."""
        self.meeting = None
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, args=(kernel, args), daemon=True)
            self._worker.start()
        else:
            self._go.release()
        self._back.acquire()
        if self.failure is not None:
            raise self.failure

    def _work(self, kernel: Func, args: Sequence[Any]) -> None:
        try:
            self.run(kernel.block, args, {})
        except BaseException as e:
            self.failure = e
        self.done = True
        self._back.release()

    def give_up(self) -> None:
        """End a thread that waits, so that no operating-system thread is left behind."""
        if self._worker is not None and self._worker.is_alive():
            self._given_up = True
            self._go.release()
            self._worker.join()


def launch_shape(it: Interpreter, kernel: Func, name: str, given: Sequence[int] | None) -> tuple[int, ...]:
    """The kernel's `grid` or `block`: its attribute, or what the launch says where that is empty."""
    fixed = it.shape(kernel.attrs[name])
    if not fixed:
        fixed = tuple(int(n) for n in given or ())
    if not fixed:
        raise error("FX0108", f"@{kernel.name}: the launch must say its {name}", loc=kernel.loc)
    return (*fixed, 1, 1)[:3]


def run_grid(
    it: Interpreter,
    kernel: Func,
    args: Sequence[Any],
    grid: Sequence[int] | None = None,
    block: Sequence[int] | None = None,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel on the memories and scalars `args`; `grid` and `block` for one whose attributes leave them open."""
    shape = {n: launch_shape(it, kernel, n, g) for n, g in (("grid", grid), ("block", block))}
    saved, it.dims = it.dims, {**it.dims, SHARED_BYTES: shared_bytes}
    names = {op.name for op in kernel.walk()}

    def threads_of(at: tuple[int, ...]) -> list[SimtThread]:
        shared: dict[Any, Any] = {}
        return [SimtThread(it, shape, {"block": at, "thread": t}, shared) for t in _indices(shape["block"])]

    try:
        if "grid_barrier" in names:
            _run_blocks(it, kernel, args, [threads_of(at) for at in _indices(shape["grid"])])
            return
        for at in _indices(shape["grid"]):
            threads = threads_of(at)
            if names & MEETINGS:
                _run_blocks(it, kernel, args, [threads])
                continue
            for t in threads:
                t.run(kernel.block, args, {})
                it.steps += t.steps
    finally:
        it.dims = saved


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All indices, axis 0 fastest: the order of threads in warps."""
    return [tuple(reversed(i)) for i in itertools.product(*[range(n) for n in reversed(shape)])]


def _run_blocks(it: Interpreter, kernel: Func, args: Sequence[Any], blocks: list[list[SimtThread]]) -> None:
    """Run blocks that are alive together to their ends."""
    everyone = [t for block in blocks for t in block]
    try:
        ready = everyone
        while ready:
            for t in ready:
                t.resume(kernel, args)
            live = [t for t in everyone if not t.done]
            ready = _met(blocks, live)
            if live and not ready:
                where = ", ".join(sorted({t.meeting.op.name for t in live if t.meeting}))
                raise error(
                    "FX0516",
                    f"@{kernel.name}: the threads of a block wait for each other forever (at {where})",
                    help="all threads of a block must reach the same barrier, all lanes of a mask the same shuffle",
                    loc=next((t.meeting.op.loc for t in live if t.meeting), None),
                )
    finally:
        for t in everyone:
            t.give_up()
            it.steps += t.steps


def _met(blocks: list[list[SimtThread]], live: list[SimtThread]) -> list[SimtThread]:
    """The threads whose meetings are complete, with what they get."""
    if live and all(t.meeting and t.meeting.who == "grid" for t in live):
        return _given(live)
    out: list[SimtThread] = []
    for block in blocks:
        waiting = [t for t in block if not t.done]
        if waiting and all(t.meeting and t.meeting.who == "block" for t in waiting):
            out += _given(waiting)
            continue
        for w in range(0, len(block), WARP):
            out += _warp(block[w : w + WARP], "warp")
    if out:
        return out
    for block in blocks:
        for w in range(0, len(block), WARP):
            out += _warp(block[w : w + WARP], "active")
    return out


def _warp(lanes: list[SimtThread], who: str) -> list[SimtThread]:
    """The lanes of one warp whose meetings are complete."""
    groups: dict[tuple[Op, int], list[SimtThread]] = {}
    existing = (1 << len(lanes)) - 1
    for t in lanes:
        if not t.done and t.meeting and t.meeting.who == who:
            mask = existing if t.meeting.mask is None else t.meeting.mask & existing
            groups.setdefault((t.meeting.op, mask), []).append(t)
    out: list[SimtThread] = []
    for (_, mask), members in groups.items():
        if who == "active" or {t.lane for t in members} == {i for i in range(WARP) if mask >> i & 1}:
            out += _given(members)
    return out


def _given(members: list[SimtThread]) -> list[SimtThread]:
    """Have the members of one meeting get their results."""
    first = members[0].meeting
    assert first is not None
    if first.who in ("warp", "active"):
        results = first.resolve({t.lane: t.meeting.given for t in members if t.meeting})
        for t in members:
            t.results = results[t.lane]
    else:
        for t in members:
            t.results = ()
    return members
