"""Launch lists as graphs: a static program that is called again with the same memory is replayed with one call.

A program is static where what it launches does not depend on anything the device computes and where it allocates nothing
on the way. The first call with some addresses and sizes runs the launch list, the second captures it, later ones replay it.
Invariant: a graph is replayed only with exactly the addresses and sizes it was captured with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Graphs", "Replays", "is_static"]

KEPT = 16  # graphs of a program
_DYNAMIC = frozenset(("load", "alloc", "call", "while", "assert"))


class Graphs(Protocol):
    """What a device that has graphs can do."""

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` puts into the stream, as a graph; nothing of it runs."""

    def replay(self, graph: Any) -> None:
        """Put the graph's work into the stream."""

    def drop(self, graph: Any) -> None:
        """Give a graph back, once its work is done."""


def is_static(host: Mapping[str, Any]) -> bool:
    """Whether the entry of a program's host functions can be captured, and has at least two pieces of work."""
    work = 0

    def walk(steps: Sequence[Mapping[str, Any]]) -> bool:
        nonlocal work
        for step in steps:
            if step["op"] in _DYNAMIC:
                return False
            work += step["op"] in ("launch", "copy")
            if not all(walk(region["steps"]) for region in step.get("regions", ())):
                return False
        return True

    return walk(host["functions"][host["entry"]]["steps"]) and work > 1


class Replays:
    """The graphs of one program."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.known: dict[Hashable, Any] = {}  # None: seen once

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, which does the same for the same `key`."""
        if key not in self.known:
            work()
            while len(self.known) >= KEPT:
                self._drop(next(iter(self.known)))
            self.known[key] = None
            return
        graph = self.known.pop(key)  # the newest is last
        if graph is None:
            graph = self.graphs.capture(work)
        self.known[key] = graph
        self.graphs.replay(graph)

    def _drop(self, key: Hashable) -> None:
        graph = self.known.pop(key)
        if graph is not None:
            self.graphs.drop(graph)

    def clear(self) -> None:
        for key in list(self.known):
            self._drop(key)
