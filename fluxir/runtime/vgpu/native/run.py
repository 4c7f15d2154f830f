"""Launches on the native executor: when it is used, what native code is given, and what becomes of its counts.

A launch with which the sanitizer finds nothing ends here. Else memory is put back to what it was, and the numpy executor runs the
launch again: so findings, and memory after them, are those of the reference.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from fluxir.errors import Location, error

from ..approximate import seeded
from ..memory import READING, Heap
from ..values import Array, dtype
from . import compiled
from .accesses import READ_ONLY
from .approximations import FUNCTIONS, inner_loop, loops_are_known
from .block import SCRATCH, Emitted, Meaning, Unsupported
from .context import COUNTED, DONE, HEADER, REGISTERS, STEPS, WORDS, count_word
from .emit import emit
from .tensor import COPY, QUEUE
from .text import module

if TYPE_CHECKING:
    from ..device import Kernel
    from ..launch import Launch

__all__ = ["choose", "run_native"]

NUMPY_SPEED = 2e7  # thread instructions a second, roughly
SLOW = 10_000_000  # steps of a launch that the numpy executor is not asked to repeat
COMPILE_START, COMPILE_EACH = 0.4, 0.0012  # seconds to compile a kernel, and for each of its instructions


class Native:
    """A kernel's native code. `objections`: launches that it stopped though nothing was wrong."""

    def __init__(self, kernel: Kernel) -> None:
        found: Emitted = emit(kernel.code, (kernel.facts.granule, kernel.facts.granule))
        assert found.enter is not None
        self.state_bytes = -(-found.register_bytes // 64) * 64
        self.meanings = found.meanings
        self.objections = 0
        self.copies = any(isinstance(h, str) and h.startswith("copy_") for h in found.helpers)
        code = compiled.compile_text(module(found.text, found.enter), 0)
        self.warp, self.enter = code["warp"], code["enter"]
        self.table = np.array([compiled.helper(h) for h in found.helpers] or [0], np.uint64)
        self.resume = np.array(found.resume or [0], np.int32)


_KNOWN: WeakKeyDictionary[Kernel, Native | Unsupported] = WeakKeyDictionary()


def native_of(kernel: Kernel) -> Native | Unsupported:
    """A kernel's native code, compiled when first asked for, or why there is none."""
    known = _KNOWN.get(kernel)
    if known is None:
        try:
            known = Native(kernel)
        except Unsupported as why:
            known = why
        _KNOWN[kernel] = known
    return known


def choose(launch: Launch, executor: str) -> bool:
    """Whether the launch runs natively. FX0710 where it must (`executor="llvm"`) and cannot."""
    if executor == "numpy":
        return False
    if executor not in ("auto", "llvm"):
        raise ValueError(f"executor is one of auto, numpy, llvm, not {executor!r}")
    why = compiled.available()
    if not why and launch.cooperative:
        why = "a cooperative launch runs all its blocks at once"
    if not why and launch.kernel.cluster_size > 1:
        why = "the blocks of a cluster run at once"
    # Where threads wait for each other in loops, how often they go round depends on who runs when.
    if executor == "auto" and (why or launch.kernel.facts.spins or not _pays(launch)):
        return False
    if not why:
        found = native_of(launch.kernel)
        if isinstance(found, Unsupported):
            if executor == "auto":
                return False
            x = found.instruction
            raise error("FX0710", f"line {x.line} of the PTX: `{x.text}`: {found.why}", loc=Location("<ptx>", x.line),
                        help='executor="numpy" runs it')  # fmt: skip
        if executor == "llvm" or not found.objections:
            return True
        return False
    raise error("FX0710", f"{launch.kernel.name} does not run natively: {why}", help='executor="numpy" runs it')


def _pays(launch: Launch) -> bool:
    """Whether native code would be done sooner, compiled from nothing, by a coarse guess: every loop goes round ten times. Not
    whether it is compiled already: which executor runs a launch must not depend on earlier ones."""
    blocks = launch.code.blocks
    size = sum(b.size for b in blocks)
    loops = any(b.instructions and b.instructions[-1][0].name == "bra" for b in blocks)
    work = launch.block_count * math.prod(launch.block) * size * (10 if loops else 1)
    return work / NUMPY_SPEED > COMPILE_START + COMPILE_EACH * size


def run_native(launch: Launch) -> bool:
    """Run the launch, whose parameters are in memory; False where the numpy executor has to, and all is as before."""
    native = native_of(launch.kernel)
    assert isinstance(native, Native)
    before = _Snapshot(launch)
    with before.read_only(), np.errstate(all="ignore"), seeded(launch.seed):
        state = _State(launch, native)
        stop = state.run()
    if stop == STEPS and launch.max_steps > SLOW:
        _endless(launch, state)
        return True
    if stop:
        before.restore()
        launch.clear()
        if stop != STEPS:
            native.objections += 1
        return False
    state.count()
    return True


def _endless(launch: Launch, state: _State) -> None:
    """A finding for the warp that ran when the steps were over: the numpy executor would take hours to come there."""
    block, thread, number = state.where()
    gx, gy, _ = launch.grid
    bx, by, _ = launch.block
    launch.findings.add("deadlock", f"the launch did not end within {launch.max_steps} steps", launch.code.blocks[number].first,
                        (block % gx, block // gx % gy, block // (gx * gy)),
                        (thread % bx, thread // bx % by, thread // (bx * by)))  # fmt: skip


class _Snapshot:
    """The bytes that a launch may change, and their shadow."""

    def __init__(self, launch: Launch) -> None:
        self.heap = launch.heap
        self.constant = [_range(a) for a in self.heap.live.values() if a.constant]
        self.saved: list[tuple[slice, Array, Array]] = []
        if launch.kernel.facts.writes_global:
            for a in self.heap.live.values():
                if not a.constant:
                    where = _range(a)
                    self.saved.append(
                        (where, self.heap.region.data[where].copy(), self.heap.region.shadow[where].copy())
                    )

    def restore(self) -> None:
        for where, data, shadow in self.saved:
            self.heap.region.data[where], self.heap.region.shadow[where] = data, shadow

    def read_only(self) -> Any:
        """A context in which constant allocations are marked in the shadow."""
        return _Marked(self)


class _Marked:
    def __init__(self, snapshot: _Snapshot) -> None:
        self.shadow, self.ranges = snapshot.heap.region.shadow, snapshot.constant

    def __enter__(self) -> None:
        for r in self.ranges:
            self.shadow[r] |= READ_ONLY

    def __exit__(self, *_: object) -> None:
        for r in self.ranges:
            self.shadow[r] &= 0xFF ^ (READ_ONLY | READING)


class _Blocks:
    """Which block touched each granule of a device's memory last. It is kept from launch to launch: blocks get ever new
    numbers."""

    def __init__(self, granules: int) -> None:
        self.arrays = {who: np.zeros(granules, np.uint32) for who in ("writer", "reader", "atomic")}
        self.next = 1


_BLOCKS: WeakKeyDictionary[Heap, dict[int, _Blocks]] = WeakKeyDictionary()


def _blocks_of(launch: Launch, granule: int) -> dict[str, Any]:
    """The arrays for a launch, and the number below those of its blocks."""
    known, n = _BLOCKS.setdefault(launch.heap, {}), -(-launch.reach // granule)
    found = known.get(granule)
    if found is None or len(found.arrays["writer"]) < n or found.next + launch.block_count >= 1 << 31:
        found = known[granule] = _Blocks(n + n // 4)
    many, found.next = found.next, found.next + launch.block_count + 1
    return {"many": many, **found.arrays}


def _range(a: Any) -> slice:
    from ..memory import GLOBAL_BASE

    return slice(a.address - GLOBAL_BASE, a.address - GLOBAL_BASE + a.nbytes)


def _aligned(nbytes: int, fill: int = 0) -> Array:
    """Bytes that start at a multiple of 64."""
    raw = np.full(nbytes + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int64)
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _State:
    """The context of one launch, with all that it points to."""

    def __init__(self, launch: Launch, native: Native) -> None:
        self.launch, self.native = launch, native
        self.words = np.zeros(len(WORDS), np.int64)
        self.kept: list[Array] = []
        self.error: BaseException | None = None
        threads = math.prod(launch.block)
        warps = -(-threads // 32)
        granule = launch.kernel.facts.granule
        region, recorder = launch.heap.region, launch.counters
        checks = launch.check != "off"
        touched = recorder._touched
        self._set(
            heap=region.data, heap_shadow=region.shadow, heap_bytes=min(len(region), 32 * (len(touched["load"]) - 1)),
            shared_bytes=launch.shared_stride, local_bytes=launch.local_stride, checks=int(checks),
            shared=self._new(launch.shared_stride + 64), shared_shadow=self._new(launch.shared_stride + 64),
            local=self._new(32 * warps * launch.local_stride + 64), local_shadow=self._new(32 * warps * launch.local_stride + 64),
            shared_states=launch.shared_shadow, local_states=np.tile(launch.local_shadow, 32 * warps),
            parameters=np.frombuffer(launch.parameters + bytes(16), np.uint8), parameter_address=launch.parameter_address,
            touched_load=touched["load"].view(np.uint8), touched_store=touched["store"].view(np.uint8),
            now=1, clocks=np.ones(warps, np.int64), warps=warps, threads=threads, last_block=launch.block_count,
            warp_bytes=native.state_bytes, code=native.warp, enter=native.enter, table=native.table, resume=native.resume,
            multiprocessors=launch.multiprocessors, dynamic_smem_size=launch.shared_bytes,
            total_smem_size=launch.kernel.static_shared + launch.shared_bytes, step_limit=launch.max_steps,
        )  # fmt: skip
        for axis, n, m in zip("xyz", launch.block, launch.grid):
            self._set(**{f"ntid.{axis}": n, f"nctaid.{axis}": m})
        self._races(checks, granule)
        self._warps(threads, warps)
        blocks = launch.code.blocks
        self.entered = np.zeros((2, len(blocks)), np.int64)
        self._set(block_warps=self.entered[0], block_threads=self.entered[1])
        self._set(groups=np.zeros(4 * 32 * warps, np.int64), queues=np.zeros(COPY * QUEUE * 32 * warps, np.uint8))
        self._seed()
        self._callback()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                self.kept.append(value)
                value = value.ctypes.data
            self.words[WORDS[name]] = value

    def _new(self, nbytes: int) -> Array:
        return _aligned(nbytes)

    def _races(self, checks: bool, granule: int) -> None:
        launch = self.launch
        if launch.global_races is not None or (checks and self.native.copies):
            self._set(global_races=1, **_blocks_of(launch, granule))
        if checks and launch.shared_stride and math.prod(launch.block) > 1:
            n = launch.shared_stride // granule
            self._set(shared_races=1, shared_race_bytes=4 * n)
            for who in ("writer", "reader", "other", "adder", "other_adder", "tag"):
                self._set(**{f"shared_{who}": np.zeros(n, np.int32)})

    def _warps(self, threads: int, warps: int) -> None:
        """The warps' states at their start."""
        bx, by, _ = self.launch.block
        states = _aligned(self.native.state_bytes * warps)
        heads = states.reshape(warps, -1)[:, :REGISTERS].copy().view(np.uint32).reshape(warps, -1, 32)
        t = np.arange(32 * warps, dtype=np.uint32).reshape(warps, 32)
        for name, values in (("tid.x", t % bx), ("tid.y", t // bx % by), ("tid.z", t // (bx * by)),
                             ("start", np.where(t < threads, 0, DONE))):  # fmt: skip
            heads[:, HEADER[name] // 128] = values
        states.reshape(warps, -1)[:, :REGISTERS] = heads.reshape(warps, -1).view(np.uint8)
        self._set(warp_state=states)
        self.states = states.reshape(warps, -1)

    def _seed(self) -> None:
        """Where the hash behind approximate instructions starts, and how much of it they take."""
        seed = self.launch.seed
        start = (0 if seed is None else seed) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        self.words.view(np.uint64)[WORDS["seed"]] = start
        self.words.view(np.float64)[WORDS["noise"]] = 0.0 if seed is None else 1.0
        for name in FUNCTIONS if loops_are_known() else ():
            address, data = inner_loop(name)
            self._set(**{name: address, f"{name}.data": data})

    def _callback(self) -> None:
        scratch = _aligned(SCRATCH)
        self._set(scratch=scratch)
        calls = [_bound(m, scratch) for m in self.native.meanings]

        def call(number: int) -> None:
            try:
                calls[number]()
            except BaseException as reason:  # it cannot pass through native code
                self.error = reason
                self.words[WORDS["stop"]] = STEPS

        self.python = _CALLBACK(call)
        self.words[WORDS["python"]] = ctypes.cast(self.python, ctypes.c_void_p).value or 0

    def run(self) -> int:
        """Why it stopped; 0 where the launch ended."""
        _ENTRY(compiled.helper("blocks"))(self.words.ctypes.data)
        if self.error is not None:
            raise self.error
        return int(self.words[WORDS["stop"]])

    def where(self) -> tuple[int, int, int]:
        """(block, first thread, basic block) of the warp that runs."""
        block, thread = (int(self.words[WORDS[name]]) for name in ("block", "first_thread"))
        pc = self.states[thread // 32][:128].view(np.uint32)
        numbers = pc[pc < len(self.launch.code.blocks)]
        return block, thread, int(numbers.min()) if len(numbers) else 0

    def count(self) -> None:
        """Add what native code counted to the launch's counters."""
        recorder = self.launch.counters
        for i, block in enumerate(self.launch.code.blocks):
            if self.entered[0, i]:
                recorder.entered[block] = [int(n) for n in self.entered[:, i]]
        for name in ("branches", "divergent_branches", "barriers", "tensor_flops"):
            recorder.count(name, int(self.words[WORDS[name]]))
        kept = dict(
            zip(
                COUNTED, (recorder._requests, recorder._bytes, recorder._sectors, recorder._wavefronts, recorder._ideal)
            )
        )
        for counted, to in kept.items():
            for kind in ("global", "shared", "local"):
                for what in ("load", "store", "atomic"):
                    n = int(self.words[WORDS[count_word(counted, kind, what)]])
                    if n:
                        to[f"{kind} {what}"] += n


def _bound(m: Meaning, scratch: Array) -> Any:
    """A function without arguments: the meaning, from operands in memory to results there."""

    def view(i: int, kind: str) -> Array:
        d = dtype(kind)
        return scratch[256 * i : 256 * i + 32 * d.itemsize].view(d)

    operands = [view(i, k) for i, k in enumerate(m.operands)]
    results = [view(i, k) for i, k in enumerate(m.results)]

    def call() -> None:
        found = m.function(*operands)
        for to, value in zip(results, found if len(results) > 1 else (found,)):
            to[:] = value

    return call
