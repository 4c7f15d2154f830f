"""The canonical form of a group around one `dot`: four flat indices, two operands, and what follows.

`analyse_dot` reads a group as `out[t, m, n] = post(sum over k of lhs[t, m, k] * rhs[t, n, k])` with flat indices: `t` over
the batch axes, `m` and `n` over the free axes of the two operands, `k` over the contracted ones. An operand may be
computed from the group's arguments (a prologue); `post` is the part of the group after the dot, which must read its
result at the very element it computes. Templates of all targets start from this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.ops.contract import dot_axes
from fluxir.ops.maps import identity_map
from fluxir.ops.nest import accumulator, cast
from fluxir.schedule.access import analyse, collapse, runs_of
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of, with_block
from fluxir.schedule.loops import memory, unravel
from fluxir.schedule.vectors import Lanes, RowElements

BATCH, FREE, CONTRACT = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of the dot. `dims[c]` are the sizes of class c (batch, free, contract); `axes` says for each axis of the
    memory (or value) which component of which class runs along it."""

    value: Value
    computed: bool
    shape: tuple[Dim, ...]
    dims: tuple[tuple[Dim, ...], ...]
    axes: tuple[tuple[int, int], ...]

    align = 0  # bytes that elements are aligned to; 0: to their size

    @property
    def memory(self) -> MemType:
        return MemType(self.value.type.dtype, self.shape)

    def contiguous(self) -> int | None:
        """The class along which elements are neighbours in memory, if that is one whole class."""
        if self.computed or not self.axes:
            return None
        c, _ = self.axes[-1]
        return c if len(self.dims[c]) == 1 else None

    def index(self, b: Builder, t: Value, r: Value, k: Value) -> tuple[Value, ...]:
        """The index of element (t, r, k), flat indices of the three classes."""
        parts = [unravel(b, i, d) for i, d in zip((t, r, k), self.dims)]
        return tuple(parts[c][p] for c, p in self.axes)


@dataclass(frozen=True, eq=False)
class Dot:
    """A group around one dot; see the module docstring. `post.args` are the group's arguments and then the dot's result;
    its loop space has `post_dims[c]` axes of class c (batch, m, n), all in order."""

    group: Group
    op: Op
    lhs: Operand
    rhs: Operand
    batch: Dim
    m: Dim
    n: Dim
    k: Dim
    post: Group
    post_dims: tuple[tuple[Dim, ...], ...]

    @property
    def dtype(self) -> DType:
        """The type in which products are added."""
        d: DType = accumulator(self.op.result.type.dtype)
        return d

    @property
    def result(self) -> Value:
        """The dot's result as an argument of `post`."""
        return self.post.args[-1]

    def states(self) -> list[Value]:
        """The arguments of `post` that are read where a result is written: a state, or what is added to the product."""
        read = {v for op in self.post.ops for v in op.operands} | set(self.post.outs)
        return [a for a in self.post.args[:-1] if a in read and shape_of(a) == self.post_shape()]

    def post_index(self, b: Builder, t: Value, m: Value, n: Value) -> tuple[Value, ...]:
        """Index of the loop space of `post`, and so of the results."""
        return tuple(i for flat, d in zip((t, m, n), self.post_dims) for i in (unravel(b, flat, d) if d else ()))

    def post_shape(self) -> tuple[Dim, ...]:
        return tuple(d for dims in self.post_dims for d in dims)


def cut(group: Group, value: Value) -> Group:
    """What of the group remains once `value` is known: it becomes the last argument."""
    b = Builder(group.loc)
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(group.args)]
    args.append(Value(value.type, None, len(args), value.owner.name if value.owner else value.name))
    env: dict[Value, Value] = {**dict(zip(group.args, args)), value: args[-1]}
    needed: set[Value] = set()
    todo = [v for v in group.outs if v is not value]
    while todo:
        v = todo.pop()
        if v not in needed and v is not value:
            needed.add(v)
            todo += v.owner.operands if v.owner else ()
    for op in group.ops:
        if any(r in needed for r in op.results) and value not in op.results:
            clone_ops(b, [op], env)
    return with_block(group, Block(args, b.ops, [env[v] for v in group.outs]))


def follows_exactly(
    group: Group, value: Value, classes: Sequence[int] = ()
) -> tuple[Group, tuple[Dim, ...], list[int]] | None:
    """What follows `value` in the group, over merged axes, where every result has its shape and is computed from its
    element at the same index; with the loop space and the class of each of its axes. None where it is not so."""
    space = shape_of(value)
    if any(shape_of(v) != space for v in group.outs):
        return None
    post = cut(group, value)
    full = identity_map(space)
    access = analyse(post, space, [(v, full) for v in post.outs], (), opaque=True)
    if access is None:
        return None
    acc = post.args[-1]
    if acc in access.hidden or access.leaves[acc] - {full}:
        return None
    classes = list(classes) or [0] * len(space)
    if not access.opaque and (merged := collapse(post, access, classes)) is not None:
        kept = [classes[run[0]] for run in runs_of(access, classes)]
        return merged[0], merged[1], kept
    return post, space, list(classes)


def analyse_dot(group: Group) -> Dot | None:
    """The group as a dot with what surrounds it; None where it does not have that form."""
    dots = [op for op in group.ops if op.name == "dot"]
    if len(dots) != 1:
        return None
    (op,) = dots
    x, y = op.operands
    lb, lf, lc, rb, rf, rc = dot_axes(x.type, y.type, op.attrs)
    across = 1 if lf and product(shape_of(y)[j] for j in rf) == 1 else 2  # a single column is no axis
    classes = [BATCH] * len(lb) + [1] * len(lf) + [across] * len(rf)
    after = follows_exactly(group, op.result, classes)
    if after is None:
        return None
    post, space, kept = after
    post_dims = tuple(tuple(d for d, c in zip(space, kept) if c == which) for which in (0, 1, 2))
    users = group.users()
    lhs = _operand(group, x, (lb, lf, lc), x is not y and users.get(x) == [op] and x not in group.outs)
    rhs = _operand(group, y, (rb, rf, rc), x is not y and users.get(y) == [op] and y not in group.outs)
    sx, sy = shape_of(x), shape_of(y)
    return Dot(
        group, op, lhs, rhs, product(sx[i] for i in lb), product(sx[i] for i in lf), product(sy[j] for j in rf),
        product(sx[i] for i in lc), post, post_dims,
    )  # fmt: skip


def _operand(group: Group, v: Value, by_class: Sequence[Sequence[int]], alone: bool) -> Operand:
    """How an operand's axes run; where `alone` allows, axes of one class that are neighbours in order merge, and axes of size
    1 are left out."""
    shape = shape_of(v)
    place = {axis: (c, p) for c, axes in enumerate(by_class) for p, axis in enumerate(axes)}
    merge = v in group.args and alone
    runs: list[list[int]] = []
    for axis in range(len(shape)):
        if merge and shape[axis] == 1:
            continue
        c, p = place[axis]
        if merge and runs and place[runs[-1][-1]] == (c, p - 1):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    order: list[list[tuple[int, Dim, int]]] = [[], [], []]  # of each class: (first position, size, run)
    for r, run in enumerate(runs):
        c, p = place[run[0]]
        order[c].append((p, product(shape[i] for i in run), r))
    axes: list[tuple[int, int]] = [(0, 0)] * len(runs)
    dims: list[tuple[Dim, ...]] = []
    for c in range(3):
        order[c].sort(key=lambda x: x[0])
        for p, (_, _, r) in enumerate(order[c]):
            axes[r] = (c, p)
        dims.append(tuple(size for _, size, _ in order[c]))
    merged = tuple(product(shape[i] for i in run) for run in runs)
    return Operand(v, v not in group.args, merged, tuple(dims), tuple(axes))


class OperandCode:
    """Reads an operand in a kernel: scalars or vectors, in accumulator type, zero outside where asked."""

    def __init__(self, operand: Operand, reads: dict[Value, Value], dtype: DType) -> None:
        self.operand, self.reads, self.dtype = operand, reads, dtype

    def at(self, b: Builder, t: Value, r: Value, k: Value) -> Value:
        where = self.operand.index(b, t, r, k)
        if self.operand.computed:
            x = Elements(b, self.reads).at(self.operand.value, where)
        else:
            x = b.emit("load", self.reads[self.operand.value], *where, align=self.operand.align)[0]
        return cast(b, x, self.dtype)

    def vector(self, b: Builder, t: Value, r: Value, k: Value, lanes: int) -> Value:
        """`lanes` elements along the class in which memory is contiguous."""
        where = self.operand.index(b, t, r, k)
        return cast(b, b.emit("load", self.reads[self.operand.value], *where, lanes=lanes)[0], self.dtype)


class PostCode:
    """Computes and stores a group's results from the elements of the op it follows (the last argument of `post`)."""

    def __init__(self, post: Group, reads: dict[Value, Value], outs: Sequence[Value]) -> None:
        self.post, self.reads, self.outs = post, reads, list(outs)

    @classmethod
    def of(cls, b: Builder, post: Group, arrays: Sequence[Value], outs: Sequence[Value]) -> PostCode:
        """Of a group whose arguments lie in `arrays`, in whatever shape these have."""
        return cls(post, {arg: viewed(b, mem, memory(arg.type)) for arg, mem in zip(post.args, arrays)}, outs)

    def store(self, b: Builder, acc: Value, where: Sequence[Value], along: Value, lanes: int = 1) -> None:
        """Store what follows from `acc`, in accumulator type: one element at index `where`, or `lanes` of them along the
        index value `along`, which must be the last of `where`."""
        result = self.post.args[-1]
        acc = cast(b, acc, result.type.dtype)
        if lanes == 1:
            e = RowElements(b, self.reads, {result: acc})
            values = [e.at(v, where) for v in self.post.outs]
        else:
            vec = Lanes(Elements(b, self.reads), along, lanes, {result: acc})
            values = [vec.vector(v, where) for v in self.post.outs]
        for mem, x in zip(self.outs, values):
            b.store(mem, x, *where)


def viewed(b: Builder, mem: Value, t: MemType) -> Value:
    """A memory as one of type `t`."""
    return mem if mem.type == t else b.emit("reinterpret", mem, type=t)[0]


def views(b: Builder, dot: Dot, mems: dict[int, Value]) -> tuple[dict[Value, Value], dict[Value, Value]]:
    """The memories of the group's arguments (by position) as the operands and as `post` see them (merged axes)."""
    sides = {s.value: s.memory for s in (dot.lhs, dot.rhs) if not s.computed}
    operands: dict[Value, Value] = {}
    for i, mem in mems.items():
        arg = dot.group.args[i]
        operands[arg] = viewed(b, mem, sides[arg]) if arg in sides else mem
    return operands, {dot.post.args[i]: viewed(b, mem, memory(dot.post.args[i].type)) for i, mem in mems.items()}


def types_of(dot: Dot) -> tuple[list[MemType], list[MemType]]:
    """Kernel argument types: the group's arguments, and the results over the loop space of `post`."""
    return [memory(a.type) for a in dot.group.args], [MemType(v.type.dtype, dot.post_shape()) for v in dot.post.outs]


def prologue_reads(dot: Dot, side: Operand) -> list[int]:
    """Positions of the group's arguments that an operand is computed from."""
    if not side.computed:
        return [dot.group.args.index(side.value)]
    seen: set[Value] = set()
    todo = [side.value]
    while todo:
        v = todo.pop()
        if v not in seen:
            seen.add(v)
            todo += v.owner.operands if v.owner else ()
    return [i for i, a in enumerate(dot.group.args) if a in seen]


def as_reduction(dot: Dot) -> Group | None:
    """A matrix-vector product as multiplication and sum, for the row-wise template; None for other dots.

    The loop space runs in the memory order of the matrix.
    """
    if dot.n == 1:
        big, small = 0, 1
    elif dot.m == 1:
        big, small = 1, 0
    else:
        return None
    axes = dot_axes(dot.op.operands[0].type, dot.op.operands[1].type, dot.op.attrs)
    sides = (axes[:3], axes[3:])
    b = Builder(dot.group.loc)
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(dot.group.args)]
    env: dict[Value, Value] = dict(zip(dot.group.args, args))
    for op in dot.group.ops:
        if op is not dot.op:
            if all(v in env for v in op.operands):
                clone_ops(b, [op], env)
            continue
        matrix, vector = env[op.operands[big]], env[op.operands[small]]
        (bb, bf, bc), (sb, sf, sc) = sides[big], sides[small]
        space = shape_of(matrix)
        vector = b.reshape(vector, shape=tuple(d for i, d in enumerate(shape_of(vector)) if i not in sf))
        left = [i for i in range(len(shape_of(op.operands[small]))) if i not in sf]
        runs_along = {**dict(zip(sb, bb)), **dict(zip(sc, bc))}
        target = [runs_along[i] for i in left]
        if target != sorted(target):
            vector = b.transpose(vector, perm=tuple(sorted(range(len(target)), key=target.__getitem__)))
        spread = b.broadcast(vector, shape=space, axes=tuple(sorted(target)))
        wide = dot.dtype
        total = b.emit("sum", b.mul(cast(b, matrix, wide), cast(b, spread, wide)), axes=tuple(sorted(bc)))[0]
        kept = [i for i in range(len(space)) if i not in bc]
        order = [kept.index(i) for i in (*bb, *bf)]
        if order != sorted(order):
            total = b.transpose(total, perm=tuple(order))
        total = cast(b, total, op.result.type.dtype)
        env[op.result] = (
            total if shape_of(total) == shape_of(op.result) else b.reshape(total, shape=shape_of(op.result))
        )
    for op in dot.group.ops:  # what comes after the dot
        if any(r not in env for r in op.results):
            clone_ops(b, [op], env)
    return with_block(dot.group, Block(args, b.ops, [env[v] for v in dot.group.outs]))


__all__ = [
    "BATCH",
    "CONTRACT",
    "FREE",
    "Dot",
    "Operand",
    "OperandCode",
    "PostCode",
    "analyse_dot",
    "as_reduction",
    "cut",
    "follows_exactly",
    "prologue_reads",
    "types_of",
    "views",
]
