"""The virtual driver: its devices, contexts and handles, and how a call comes in.

`VirtualCuda.call(name, ...)` is what a call from C ends in. Every object that a program holds is a handle: a number that
names one Python object. Invariants:

- A context belongs to one device and is current by thread, on a stack, as CUDA has it. Streams, events, modules and memory
  belong to a context and go with it.
- A context in which work failed answers every later call with that failure, until it is destroyed.
- `fault` is asked before every call: tests let entry points fail through it.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..device import Device
from .entry import ENTRIES
from .memory import Memory
from .order import Event, Graph, Stream
from .results import CudaError, Result

__all__ = ["Context", "VirtualCuda"]

T = TypeVar("T")


class Context:
    def __init__(self, driver: VirtualCuda, device: int, flags: int = 0, primary: bool = False) -> None:
        self.driver, self.device, self.flags, self.primary = driver, device, flags, primary
        self.default = Stream(self)
        self.streams: list[Stream] = [self.default]
        self.failed: CudaError | None = None
        self.limits: dict[int, int] = {}
        self.cache_config = 0
        self.peers: set[int] = set()
        self.handle = driver.add(self)
        self.alive = True

    @property
    def gpu(self) -> Device:
        return self.driver.gpus[self.device]

    def fail(self, reason: CudaError) -> None:
        """Work failed: the context is lost."""
        if self.failed is None:
            self.failed = reason
            self.driver.detail[reason.result] = reason.detail
        for s in self.streams:
            s.queue.clear()

    def check(self) -> None:
        if self.failed is not None:
            raise CudaError(self.failed.result, self.failed.detail)

    def settle(self) -> None:
        """Run all work of the context."""
        for s in self.streams:
            s.run()

    def stream(self, handle: int) -> Stream:
        """0 and 1 (legacy) and 2 (per thread) are the default stream."""
        return self.default if handle in (0, 1, 2) else self.driver.find(handle, Stream)

    def destroy(self) -> None:
        """Run what waits, then give back everything."""
        if self.failed is None:
            self.settle()
        self.alive = False
        self.driver.memory.release(self)
        self.driver.forget(lambda x: getattr(x, "context", None) is self or x is self)


class VirtualCuda:
    """A CUDA driver whose devices are virtual GPUs. `eager`: work runs as soon as it is put into a stream."""

    VERSION = 13000

    def __init__(
        self, gpus: Sequence[Device], memory_bytes: Sequence[int] | int = 1 << 33, eager: bool = False
    ) -> None:
        assert gpus, "a driver without a device"
        self.gpus, self.eager = list(gpus), eager
        for g in self.gpus[1:]:
            g.heap = self.gpus[0].heap  # one address space
        self._bytes = [memory_bytes] * len(gpus) if isinstance(memory_bytes, int) else list(memory_bytes)
        self.memory = Memory(self.gpus[0].heap)
        self.initialised = False
        self.handles: dict[int, Any] = {}
        self.primary: dict[int, Context] = {}
        self.retained: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self.detail: dict[Result, str] = {}
        self.fault: Callable[[str], Result | None] = lambda name: None
        self.lock = threading.RLock()
        self._local = threading.local()
        self._next = 0x5_0000_0000

    # ---- handles
    def add(self, thing: Any) -> int:
        self._next += 16
        self.handles[self._next] = thing
        return self._next

    def find(self, handle: int, kind: type[T]) -> T:
        """INVALID_HANDLE where the handle is no living `kind`."""
        thing = self.handles.get(handle)
        if not isinstance(thing, kind):
            raise CudaError(Result.INVALID_HANDLE, f"{handle:#x} is no {kind.__name__.lower()}")
        return thing

    def remove(self, handle: int, kind: type[T]) -> T:
        thing = self.find(handle, kind)
        del self.handles[handle]
        return thing

    def forget(self, which: Callable[[Any], bool]) -> None:
        self.handles = {h: x for h, x in self.handles.items() if not which(x)}

    # ---- contexts
    @property
    def stack(self) -> list[Context]:
        """The contexts of this thread; the last one is current."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        found: list[Context] = self._local.stack
        return found

    def current(self) -> Context:
        if not self.stack:
            raise CudaError(Result.INVALID_CONTEXT, "no context is current")
        if not self.stack[-1].alive:
            raise CudaError(Result.CONTEXT_IS_DESTROYED)
        return self.stack[-1]

    def gpu(self, number: int) -> Device:
        if not 0 <= number < len(self.gpus):
            raise CudaError(Result.INVALID_DEVICE)
        return self.gpus[number]

    def capacity(self, device: int) -> int:
        return self._bytes[device]

    def leaks(self) -> list[str]:
        """What is still allocated, by kind: empty after a clean end (contexts do not count)."""
        names = {Stream: "stream", Event: "event", Graph: "graph"}
        found = [f"{b.nbytes} bytes of {b.kind} memory" for b in self.memory.blocks.values()]
        found += [f"{p.nbytes} bytes of pinned memory" for p in self.memory.pinned.values()]
        return found + [
            names.get(type(x), type(x).__name__.lower()) for x in self.handles.values() if not isinstance(x, Context)
        ]

    # ---- calls
    def call(self, name: str, *args: int) -> int:
        """One call of an entry point, as the C function of this name: never raises."""
        try:
            with self.lock:
                self.calls[name] += 1
                injected = self.fault(name)
                return int(self._call(name, args) if injected is None else injected)
        except CudaError as reason:
            if reason.detail:
                self.detail[reason.result] = reason.detail
            return int(reason.result)
        except Exception:
            traceback.print_exc(file=sys.stderr)  # a defect of ours: nothing may travel through C
            return int(Result.UNKNOWN)

    def _call(self, name: str, args: tuple[int, ...]) -> Result:
        found = ENTRIES.get(name)
        if found is None:
            raise CudaError(Result.NOT_SUPPORTED, f"{name}: the virtual GPU does not have this")
        if found.needs == "nothing":
            return Result(found.function(self, *args) or 0)
        if not self.initialised:
            raise CudaError(Result.NOT_INITIALIZED)
        if found.needs == "driver":
            return Result(found.function(self, *args) or 0)
        context = self.current()
        context.check()
        return Result(found.function(self, context, *args) or 0)
