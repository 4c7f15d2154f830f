"""What a reverse pass keeps from the forward pass, and what it computes again: a minimum cut in bytes.

Source: Griewank & Walther, Evaluating Derivatives (2008), on storing against recomputing; the cut is the max-flow min-cut
theorem on the forward values, every value weighing what it takes to keep it. Values that are cheap to make (elementwise,
indexing, shapes, random numbers) may lie on the far side of the cut and are made again where the reverse pass runs, fused
into the kernels that need them; what is dear to make (contractions, reductions, sorts, loops) is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, evaluate, symbols_of
from fluxir.ir.rewrite import has_effects
from fluxir.ir.types import TensorType

CHEAP = frozenset(("elementwise", "compare", "constant", "shape", "random", "composite"))
CHEAP_OPS = frozenset(("gather", "dynamic_slice", "slice", "concat", "pad", "clamp", "select", "cast"))
NOMINAL = 64  # what an unknown size is taken for
INFINITE = 1 << 60

POLICIES = ("auto", "all", "none")


def is_cheap(op: Op) -> bool:
    """Whether to compute this op twice is no more work than to write its result and read it back."""
    return not op.blocks and not has_effects(op) and (op.defn.category in CHEAP or op.name in CHEAP_OPS)


def weight(v: Value) -> int:
    """The bytes of a value, a symbolic size taken for `NOMINAL`."""
    if not isinstance(v.type, TensorType):
        return INFINITE
    size: Dim = v.type.size
    if not isinstance(size, int):
        size = evaluate(size, dict.fromkeys(symbols_of(size), NOMINAL))
    return max(1, size * v.type.dtype.itemsize)


def choose(
    ops: Sequence[Op],
    needed: Collection[Value],
    free: Collection[Value],
    policy: str = "auto",
    stored: Collection[Value] = (),
) -> tuple[list[Value], list[Op]]:
    """(values to keep, ops to run again) so that `needed` is there in the reverse pass.

    `ops` made the values, in order; `free` are there anyway (arguments the reverse pass is given). "all" keeps whatever
    is needed, "none" runs everything again from `free` and the other arguments, which are kept. To keep one of
    `stored`, which the forward pass writes anyway, costs next to nothing.
    """
    made = {r: op for op in ops for r in op.results}
    wanted = [v for v in dict.fromkeys(needed) if v not in free]
    kept = _kept(made, wanted, free, policy, stored)
    again: set[Op] = set()
    todo = [v for v in wanted if v not in kept]
    while todo:
        op = made[todo.pop()]
        if op not in again:
            again.add(op)
            todo += [v for v in op.operands if v not in kept and v not in free]
    return [v for v in kept if v not in free], [op for op in ops if op in again]


def _kept(
    made: dict[Value, Op], wanted: Sequence[Value], free: Collection[Value], policy: str, stored: Collection[Value]
) -> dict[Value, None]:
    def repeatable(v: Value) -> bool:
        op = made.get(v)
        if op is None or has_effects(op):
            return False
        return op.name == "const" or policy == "none" or (policy == "auto" and is_cheap(op))

    graph = _Flow()
    source, sink = graph.node(), graph.node()
    nodes: dict[Value, tuple[int, int]] = {}
    todo = list(wanted)
    while todo:
        v = todo.pop()
        if v in nodes:
            continue
        nodes[v] = enter, leave = graph.node(), graph.node()
        cost = 1 if v in stored else weight(v) if policy != "none" or not repeatable(v) else INFINITE
        graph.edge(enter, leave, cost)
        if not repeatable(v):
            graph.edge(source, enter, INFINITE)
            continue
        todo += [x for x in made[v].operands if x not in free]
    for v, (enter, _) in nodes.items():
        if repeatable(v):
            for x in dict.fromkeys(made[v].operands):
                if x not in free:
                    graph.edge(nodes[x][1], enter, INFINITE)
    for v in wanted:
        graph.edge(nodes[v][1], sink, INFINITE)
    far = graph.cut(source, sink)
    return {v: None for v, (enter, leave) in nodes.items() if leave in far and enter not in far}


class _Flow:
    """Maximum flow by Dinic's algorithm (1970)."""

    def __init__(self) -> None:
        self.out: list[list[int]] = []  # by node, the edges that leave it; edge e ^ 1 is the reverse of e
        self.to: list[int] = []
        self.room: list[int] = []

    def node(self) -> int:
        self.out.append([])
        return len(self.out) - 1

    def edge(self, a: int, b: int, room: int) -> None:
        for x, y, r in ((a, b, room), (b, a, 0)):
            self.out[x].append(len(self.to))
            self.to.append(y)
            self.room.append(r)

    def cut(self, source: int, sink: int) -> set[int]:
        """The nodes on the sink's side of the minimum cut that is nearest to the sink: the least is computed again."""
        while True:
            level = self.levels(source)
            if sink not in level:
                return self.reaching(sink)
            nexts = [0] * len(self.out)
            while self.push(source, sink, level, nexts):
                pass

    def levels(self, source: int) -> dict[int, int]:
        level = {source: 0}
        queue = deque([source])
        while queue:
            a = queue.popleft()
            for e in self.out[a]:
                if self.room[e] and self.to[e] not in level:
                    level[self.to[e]] = level[a] + 1
                    queue.append(self.to[e])
        return level

    def reaching(self, sink: int) -> set[int]:
        """The nodes from which more could still flow to the sink."""
        found, todo = {sink}, [sink]
        while todo:
            for e in self.out[todo.pop()]:
                if self.room[e ^ 1] and self.to[e] not in found:
                    found.add(self.to[e])
                    todo.append(self.to[e])
        return found

    def push(self, source: int, sink: int, level: dict[int, int], nexts: list[int]) -> bool:
        """Fill one path from source to sink; without recursion, for graphs of any depth."""
        path: list[int] = []
        at = source
        while at != sink:
            edges = self.out[at]
            while nexts[at] < len(edges):
                e = edges[nexts[at]]
                if self.room[e] and level.get(self.to[e], -1) == level[at] + 1:
                    break
                nexts[at] += 1
            if nexts[at] < len(edges):
                path.append(edges[nexts[at]])
                at = self.to[path[-1]]
            elif path:
                e = path.pop()
                at = self.to[e ^ 1]
                nexts[at] += 1
            else:
                return False
        amount = min(self.room[e] for e in path)
        for e in path:
            self.room[e] -= amount
            self.room[e ^ 1] += amount
        return True


__all__ = ["POLICIES", "choose", "is_cheap", "weight"]
