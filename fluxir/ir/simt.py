"""The meaning of a GPU kernel: blocks one after the other, the threads of a block in turns.

Each thread is an interpreter of its own over the same memory. A thread runs until it ends or waits at a `barrier` or
`shuffle_xor`; then the next one runs. When all threads that still run wait at the barrier they all go on; lanes of a
warp (32 neighbouring threads) that all wait at a shuffle exchange their values. Threads that wait for each other in
different places, or that an ended thread keeps waiting at a shuffle, are an error (FX0516). Exactly one thread runs at
any time and the order is fixed, so the result is deterministic; a kernel that relies on luck is found by the virtual
GPU, not here.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Func, Op, Value
from fluxir.ir.interp import Interpreter

WARP = 32
_MEETINGS = frozenset(("barrier", "shuffle_xor"))


class SimtThread(Interpreter):
    """One GPU thread: knows its indices, shares the block's `shared` memories, and meets the others at barriers."""

    def __init__(
        self,
        parent: Interpreter,
        shape: dict[str, tuple[int, ...]],
        at: dict[str, tuple[int, ...]],
        shared: dict[Op, Any],
    ) -> None:
        super().__init__(parent.module, parent.dims)
        self.depth = parent.depth
        self._index = {
            "block_dim": shape["block"],
            "grid_dim": shape["grid"],
            "block_id": at["block"],
            "thread_id": at["thread"],
        }
        self._shared = shared
        self.waiting = ""  # "" runs, "barrier", "shuffle" or "done"
        self.value: Any = None
        self.mask = 0
        self.failure: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._worker: threading.Thread | None = None

    # ---- what the ops ask for
    def simt_index(self, name: str, axis: int) -> Any:
        return np.int64(self._index[name][axis])

    def simt_barrier(self) -> list[Any]:
        self._wait("barrier")
        return []

    def simt_shuffle_xor(self, value: Any, mask: int) -> Any:
        self.value, self.mask = value, mask
        self._wait("shuffle")
        return self.value

    def step(self, op: Op, env: dict[Value, Any]) -> Sequence[Any]:
        if op.name == "alloc" and op.attrs["type"].space == "shared":
            if op not in self._shared:
                self._shared[op] = super().step(op, env)
            return self._shared[op]  # type: ignore[no-any-return]
        return super().step(op, env)

    # ---- taking turns
    def resume(self, kernel: Func, args: Sequence[Any]) -> None:
        """Run until the thread waits or ends; raises what it raised."""
        self.waiting = ""
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
        self.waiting = "done"
        self._back.release()

    def _wait(self, what: str) -> None:
        self.waiting = what
        self._back.release()
        self._go.acquire()
        if self.waiting == "done":  # the block was given up
            raise SystemExit

    def give_up(self) -> None:
        """End a thread that waits, so that no operating-system thread is left behind."""
        if self._worker is not None and self._worker.is_alive():
            self.waiting = "done"
            self._go.release()
            self._worker.join()


def run_grid(it: Interpreter, kernel: Func, args: Sequence[Any]) -> None:
    """Run a kernel that carries `grid` and `block` attributes on the memories and scalars `args`."""
    shape = {"grid": it.shape(kernel.attrs["grid"]), "block": it.shape(kernel.attrs["block"])}
    meets = any(op.name in _MEETINGS for op in kernel.walk())
    for block in _indices(shape["grid"]):
        shared: dict[Op, Any] = {}
        threads = [SimtThread(it, shape, {"block": block, "thread": t}, shared) for t in _indices(shape["block"])]
        if not meets:
            for t in threads:
                t.run(kernel.block, args, {})
                it.steps += t.steps
            continue
        try:
            _run_block(kernel, args, threads)
        finally:
            for t in threads:
                t.give_up()
                it.steps += t.steps


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All indices, axis 0 fastest: the order of threads in warps."""
    return [tuple(reversed(i)) for i in itertools.product(*[range(n) for n in reversed(shape)])]


def _run_block(kernel: Func, args: Sequence[Any], threads: list[SimtThread]) -> None:
    ready = list(threads)
    while ready:
        for t in ready:
            t.resume(kernel, args)
        live = [t for t in threads if t.waiting != "done"]
        ready = live if all(t.waiting == "barrier" for t in live) else _exchange(threads)
        if live and not ready:
            where = ", ".join(sorted({t.waiting for t in live}))
            raise error(
                "FX0516",
                f"@{kernel.name}: the threads of a block wait for each other forever (at {where})",
                help="all threads of a block must reach the same barrier, all lanes of a warp the same shuffle",
            )


def _exchange(threads: list[SimtThread]) -> list[SimtThread]:
    """The threads of all warps whose lanes all wait at a shuffle, with their values exchanged."""
    out: list[SimtThread] = []
    for w in range(0, len(threads), WARP):
        lanes = threads[w : w + WARP]
        if all(t.waiting == "shuffle" for t in lanes):
            values = [t.value for t in lanes]
            for i, t in enumerate(lanes):
                t.value = values[i ^ t.mask] if i ^ t.mask < len(lanes) else values[i]
            out += lanes
    return out
