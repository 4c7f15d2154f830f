"""What runs when: streams, events and graphs of the virtual driver.

Work is put into streams and runs when somebody waits for it, as late as the rules of CUDA allow (`eager=False`), or at once.
Late is what finds a program that forgot to wait: it reads a result before the copy has run, or changes pinned memory that a
copy still has to read. Invariants:

- Work of one stream runs in order. The default stream (handle 0) waits for all blocking streams of its context, and they for it.
- Work that fails marks its context: what waits in it is dropped, and every later call on it fails the same way.
- A stream that captures runs nothing; its work becomes a graph, which runs as often as it is launched.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .results import CudaError, Result

if TYPE_CHECKING:
    from .state import Context

__all__ = ["Event", "Graph", "Stream"]

Work = Callable[[], None]
NON_BLOCKING = 1
DISABLE_TIMING = 2


class Graph:
    """Work that was captured, to be launched as a whole."""

    def __init__(self, context: Context, mode: int = 0) -> None:
        self.context, self.mode = context, mode
        self.nodes: list[Work] = []
        self.invalid = False


class Stream:
    """A queue of a context."""

    def __init__(self, context: Context, flags: int = 0) -> None:
        self.context, self.flags = context, flags
        self.queue: deque[Work] = deque()
        self.capture: Graph | None = None
        self.running = False

    @property
    def blocking(self) -> bool:
        return not self.flags & NON_BLOCKING

    def put(self, work: Work) -> None:
        """Add work, to be run later (or captured)."""
        if self.capture is not None:
            self.capture.nodes.append(work)
            return
        self.settle()
        self.queue.append(work)
        if self.context.driver.eager:
            self.run()

    def settle(self) -> None:
        """What has to run before new work of this stream may: for the default stream the others, for them the default one."""
        if self is self.context.default:
            for s in self.context.streams:
                if s is not self and s.blocking:
                    s.run()
        elif self.blocking:
            self.context.default.run()

    def run(self, until: Work | None = None) -> None:
        """Run all work, or all up to and with `until`. Failures go to the context."""
        if self.running:  # a wait for an event of this very stream: what is before it has run
            return
        self.running = True
        try:
            while self.queue and not self.context.failed:
                work = self.queue.popleft()
                try:
                    work()
                except CudaError as reason:
                    self.context.fail(reason)
                if work is until:
                    break
        finally:
            self.running = False

    def progress(self) -> bool:
        """One piece of work, as a device goes on while a program polls. Whether there was nothing to do."""
        if not self.queue:
            return True
        self.run(until=self.queue[0])
        return False

    def not_capturing(self) -> None:
        """A call that waits ends a capture: STREAM_CAPTURE_UNSUPPORTED."""
        if self.capture is not None:
            self.capture.invalid = True
            raise CudaError(Result.STREAM_CAPTURE_UNSUPPORTED)


class Event:
    """A place in a stream, and when the device came by (seconds; None where it has not)."""

    def __init__(self, context: Context, flags: int = 0) -> None:
        self.context, self.flags = context, flags
        self.stream: Stream | None = None
        self.mark: Work | None = None
        self.time: float | None = None

    @property
    def timed(self) -> bool:
        return not self.flags & DISABLE_TIMING

    def record(self, stream: Stream) -> None:
        self.stream, self.time = stream, None

        def mark() -> None:
            if self.mark is mark:  # not recorded anew meanwhile
                self.time = time.perf_counter()

        self.mark = mark
        stream.put(mark)

    @property
    def done(self) -> bool:
        """An event that was never recorded counts as done."""
        return self.stream is None or self.time is not None

    def place(self) -> Callable[[], None]:
        """What waits for the event as it is recorded now."""
        stream, mark = self.stream, self.mark

        def wait() -> None:
            if stream is not None and mark in stream.queue:
                stream.run(until=mark)

        return wait

    def wait(self) -> None:
        self.place()()
