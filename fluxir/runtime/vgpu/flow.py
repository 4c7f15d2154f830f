"""The order in which basic blocks run: a topological order of the control-flow graph in which every loop lies together, after
its header and before what follows it.

Threads wait at the earliest block, so this order decides where threads that parted meet: at a loop's exit only when all have
left the loop, at the end of an `if` only when both branches are done. Any graph has such an order; in an irreducible loop the
first entry found is taken for its header. Source of the components: R. Tarjan, Depth-first search and linear graph
algorithms, 1972.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["order"]


def order(successors: Sequence[Sequence[int]]) -> list[int]:
    """The blocks that block 0 reaches, in the order described above; unreachable ones follow."""
    out: list[int] = []
    reachable = _reach(successors)
    # A stack of our own: loops may be nested deeper than Python's calls. An item is a block or a loop that is to be ordered,
    # as (its blocks, its header, the edges that no longer count).
    stack: list[int | tuple[set[int], int, frozenset[tuple[int, int]]]] = [(reachable, 0, frozenset())]
    while stack:
        item = stack.pop()
        if isinstance(item, int):
            out.append(item)
            continue
        nodes, entry, cut = item
        edges = {n: [s for s in successors[n] if s in nodes and (n, s) not in cut] for n in nodes}
        pieces: list[int | tuple[set[int], int, frozenset[tuple[int, int]]]] = []
        for component in _components(edges, entry):
            if len(component) == 1:
                (n,) = component
                pieces.append(n)
                continue
            head = _header(component, edges, entry)
            back = frozenset((n, head) for n in component if head in edges[n])
            pieces.append((component, head, cut | back))
        stack.extend(reversed(pieces))
    return out + [n for n in range(len(successors)) if n not in reachable]


def _reach(successors: Sequence[Sequence[int]]) -> set[int]:
    seen, work = {0}, [0]
    while work:
        for s in successors[work.pop()]:
            if s not in seen:
                seen.add(s)
                work.append(s)
    return seen


def _header(component: set[int], edges: Mapping[int, Sequence[int]], entry: int) -> int:
    """The node by which a component is entered from outside; of several the first in the text."""
    if entry in component:
        return entry
    entered = {s for n, found in edges.items() if n not in component for s in found if s in component}
    return min(entered or component)


def _components(edges: Mapping[int, Sequence[int]], entry: int) -> list[set[int]]:
    """The strongly connected components in topological order."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on: set[int] = set()
    path: list[int] = []
    found: list[set[int]] = []
    for root in [entry, *sorted(edges)]:
        if root in index:
            continue
        work = [(root, iter(_far_first(edges[root])))]
        index[root] = low[root] = len(index)
        path.append(root)
        on.add(root)
        while work:
            n, rest = work[-1]
            for s in rest:
                if s not in index:
                    index[s] = low[s] = len(index)
                    path.append(s)
                    on.add(s)
                    work.append((s, iter(_far_first(edges[s]))))
                    break
                if s in on:
                    low[n] = min(low[n], index[s])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[n])
                if low[n] == index[n]:
                    component = set()
                    while n not in component:
                        member = path.pop()
                        on.discard(member)
                        component.add(member)
                    found.append(component)
    return found[::-1]


def _far_first(targets: Sequence[int]) -> list[int]:
    """Later blocks are searched first, so that earlier ones come earlier in the order."""
    return sorted(targets, reverse=True)
