"""Fusion: which ops run together as one kernel.

Every group has at most one *structured* op at its heart and becomes one `fused` op:
- pointwise: elementwise and index-mapping ops, inlined into each other;
- dot / conv / window: the structured op, and the elementwise ops after it on its own output (epilogue), while each
  value is still in a register;
- rowwise: one or more reductions over the same axes, with the elementwise ops before, between and after them
  (softmax, norms): one pass over memory, a row at a time.

Groups grow from their last op backwards: a producer joins when all its users are in the group (its value then never
reaches memory), is copied into each group when it is cheap, or becomes one more output of the group when its shape
fits. Inputs that are pure reshapes of memory stay outside: they cost nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, product, prove_le
from fluxir.ir.rewrite import rewrite_func
from fluxir.ir.types import TensorType
from fluxir.ops.maps import axes_of
from fluxir.passes.fuse_emit import Emission
from fluxir.passes.fuse_group import (
    CHEAP,
    INDEXING,
    NEVER,
    REDUCTIONS,
    STRUCTURED,
    Group,
    elementwise,
    is_pointwise,
    is_view,
    joins_alike,
    row_shapes,
    rows_agree,
    shape_of,
    small_constant,
    tails,
)
from fluxir.passes.manager import PassContext, pass_

MAX_CONCAT = 32
FEW_ROWS = 64  # fewer known rows than this keep a target busy only if each is cut, which one reduction allows


@pass_("fuse")
def fuse(func: Func, cx: PassContext, *, max_ops: int = 64, multi_output: bool = True) -> Func:
    """Group ops into `fused` ops (one kernel each), in this function and in the regions of its control flow."""
    func = rewrite_func(func, _cut_concat)
    return func.with_block(_fuse_block(func.block, cx, max_ops, multi_output))


def _cut_concat(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> tuple[Value, ...] | None:
    """A concat of very many operands as concats of concats. One element of a concat asks of each operand in turn whether
    it comes from there, so its code, and the time LLVM takes for it, grow faster than the number of operands."""
    if op.name != "concat" or len(operands) <= MAX_CONCAT:
        return None
    parts = list(operands)
    while len(parts) > 1:
        cuts = [parts[i : i + MAX_CONCAT] for i in range(0, len(parts), MAX_CONCAT)]
        parts = [b.emit("concat", *cut, **op.attrs)[0] if len(cut) > 1 else cut[0] for cut in cuts]
    return (parts[0],)


def _fuse_block(block: Block, cx: PassContext, max_ops: int, multi_output: bool) -> Block:
    grouping = Grouping(block, cx, max_ops, multi_output)
    grouping.grow()
    if multi_output:
        grouping.merge_horizontally()
    return Emission(grouping, lambda k: _fuse_block(k, cx, max_ops, multi_output)).emit()


class Grouping:
    def __init__(self, block: Block, cx: PassContext, max_ops: int, multi_output: bool) -> None:
        self.block, self.cx, self.max_ops, self.multi_output = block, cx, max_ops, multi_output
        self.position = {op: i for i, op in enumerate(block.ops)}
        self.users: dict[Op, list[Op]] = {op: [] for op in block.ops}
        for op in block.ops:
            for v in dict.fromkeys(op.operands):
                if v.owner is not None:
                    self.users[v.owner].append(op)
        self.tails = tails(block)
        self.returned = {v.owner for v in block.outs if v.owner is not None}
        self.groups: list[Group] = []
        self.of: dict[Op, list[Group]] = {}  # an op copied into several groups is in all of them

    # ---- growing
    def grow(self) -> None:
        for op in reversed(self.block.ops):
            if not self.users[op] and op not in self.returned:
                continue
            if not self.fusible(op):
                continue
            homes = self.homes(op)
            if len(homes) > 1 and self.multi_output:
                homes = self.merge_siblings(homes, op.results[0])
            users_inside = [g for u in self.users[op] for g in self.of.get(u, ())]
            everywhere = op not in self.returned and all(u in self.of for u in self.users[op])
            if homes and everywhere and len({g.ident for g in users_inside}) == 1:
                self.join(op, homes[0])
            elif homes and everywhere and self.cheap(op) and len(homes) == len({g.ident for g in users_inside}):
                for g in homes:
                    self.join(op, g)
            elif homes and self.multi_output and (home := self.extra_output_home(op, homes)) is not None:
                self.join(op, home)
                home.outs.add(op)
                self.cx.rules["fuse multi-output"] += 1
            else:
                self.start(op)

    def fusible(self, op: Op) -> bool:
        if (op.blocks and op.name != "iterate") or op.name in NEVER or op.defn.effects or op.defn.element is None:
            return False
        return all(isinstance(r.type, TensorType) for r in op.results) and (op.name != "const" or small_constant(op))

    def start(self, op: Op) -> None:
        g = Group(len(self.groups), {op}, {op})
        if op.name in REDUCTIONS:
            g.kind, g.root = "rowwise", op
            g.full, g.axes = shape_of(op.operands[0]), axes_of(op)
        elif op.name in STRUCTURED:
            g.kind, g.root = STRUCTURED[op.name], op
        elif is_view(op):
            g.kind = "view"  # of what its operand's kernel writes
        elif not is_pointwise(op):
            g.kind, g.root = "single", op
        self.groups.append(g)
        self.of[op] = [g]

    def homes(self, op: Op) -> list[Group]:
        """Groups of users that the op may be inlined into."""
        found = {g.ident: g for u in self.users[op] for g in self.of.get(u, ())}
        room = self.max_ops + (op.name == "const") * len(
            self.block.ops
        )  # a constant in registers costs a group nothing
        return [g for g in found.values() if len(g.members) < room and self.may_join(op, g)]

    def join(self, op: Op, g: Group) -> None:
        if op.name in REDUCTIONS and g.kind in ("pointwise", "rowwise"):
            g.kind, g.root = "rowwise", g.root or op
            g.full, g.axes = shape_of(op.operands[0]), axes_of(op)
        elif op.name in STRUCTURED:
            g.kind, g.root = STRUCTURED[op.name], op
        g.members.add(op)
        self.of.setdefault(op, []).append(g)

    def cheap(self, op: Op) -> bool:
        """Whether to compute an element again costs no more than to write and read it. A division by what is broadcast is
        (a normalised value: 1 or 2 cycles an element in vectors, and its operands are kept anyway)."""
        if op.name == "div":
            y = op.operands[1].type
            return bool(y.dtype.is_float) and y.size != op.result.type.size  # type: ignore[union-attr]
        return op.name in CHEAP

    def inputs(self, u: Group | Op) -> list[Value]:
        if isinstance(u, Op):
            return list(u.operands)
        inner = u.members
        found: dict[Value, None] = {}
        for m in self.ordered(inner):
            for v in m.operands:
                if v.owner is None or v.owner not in inner:
                    found[v] = None
        return list(found)

    # ---- who may join whom
    def may_join(self, op: Op, g: Group) -> bool:
        if g.kind in ("single", "view"):
            return False
        if op.name in STRUCTURED:
            return g.kind == "pointwise" and self.epilogue_fits(op, g)
        if op.name in REDUCTIONS:
            return self.reduction_fits(op, g)
        if not is_pointwise(op):
            return False
        if op.name == "const":
            return True
        users = [u for u in self.users[op] if u in g.members]
        if self.belongs_elsewhere(op, g, users):
            return False
        if g.root is not None and g.kind != "rowwise" and g.root in users:
            return self.prologue_fits(op, g)
        if g.kind == "rowwise":
            return self.row_fits(op, g) and (self.once_a_row(op, g) or self.fan_out_fits(op, g))
        if self.leads_to_row(op, g):
            return True
        return self.fan_out_fits(op, g) and not any(
            u.name in ("pad", "concat", "dynamic_update", "gather", "dynamic_slice")
            and not self.cheap(op)
            and not self.joins(u, g)
            for u in users
        )

    def belongs_elsewhere(self, op: Op, g: Group, users: list[Op]) -> bool:
        """The op follows a contraction or a reduction on its own output, so that kernel should take it: there the value is
        in a register, and what is written is no larger."""
        root = self.tails.get(op)
        if root is None or op.results[0].type.dtype.bits > root.results[0].type.dtype.bits:
            return False
        if root.name in REDUCTIONS:
            return g.kind == "rowwise" and (g.full, g.axes) != (shape_of(root.operands[0]), axes_of(root))
        shape = shape_of(op.results[0])
        return g.kind == "rowwise" or any(not elementwise(u) or shape_of(u.results[0]) != shape for u in users)

    def fan_out_fits(self, op: Op, g: Group) -> bool:
        """Inlining must not compute an expensive element many times, however many cheap ops stand in between."""
        if self.cheap(op):
            return True
        size = op.results[0].type.size  # type: ignore[union-attr]
        walked = [product(g.full)] if g.full is not None else [product(self.walked(o, g)) for o in g.outs]
        return all(prove_le(n, size) for n in walked)

    def joins(self, op: Op, g: Group) -> bool:
        """The op is a concat at the end of the group whose parts one pass computes side by side."""
        alone = op in g.outs and not any(u in g.members for u in self.users[op])
        return alone and joins_alike(op) and (self.cx.target is None or self.cx.target.kind == "cpu")

    def walked(self, out: Op, g: Group) -> tuple[Dim, ...]:
        """The shape that a pointwise group walks for one of its results."""
        return shape_of(out.operands[0] if self.joins(out, g) else out.results[0])

    def leads_to_row(self, op: Op, g: Group) -> bool:
        """A value per row (of size 1 along some axes) that comes from a reduction of the group's own shape: with it the
        group becomes rowwise, and the value is computed once a row."""
        shapes = {shape_of(o.results[0]) for o in g.outs}
        if len(shapes) != 1 or not elementwise(op):
            return False
        (full,) = shapes
        shape = shape_of(op.results[0])
        if len(shape) != len(full) or shape == full or any(a not in (1, b) for a, b in zip(shape, full, strict=True)):
            return False
        todo, seen = [op], {op}
        while todo and len(seen) < 16:
            o = todo.pop()
            for v in o.operands:
                p = v.owner
                if p is None or p in seen:
                    continue
                if p.name in REDUCTIONS and shape_of(p.operands[0]) == full and shape_of(p.result) == shape:
                    axes = axes_of(p)
                    return all(self.in_row_space(m, full, axes) for m in g.members)
                if elementwise(p) and shape_of(p.results[0]) == shape:
                    seen.add(p)
                    todo.append(p)
        return False

    def epilogue_fits(self, op: Op, g: Group) -> bool:
        """All that follows the structured op in the group is elementwise on its very output."""
        shape = shape_of(op.result)
        reached = {op}
        for m in self.ordered(g.members):
            if any(v.owner in reached for v in m.operands):
                if not elementwise(m) or shape_of(m.results[0]) != shape:
                    return False
                reached.add(m)
        return all(o in reached for o in g.outs)

    def prologue_fits(self, op: Op, g: Group) -> bool:
        """A producer of a window's or contraction's operand is computed several times: only the cheapest may."""
        return (
            g.kind == "window"
            and self.cheap(op)
            and elementwise(op)
            and len(self.users[op]) == 1
            and (op not in self.tails or self.tails[op].name in REDUCTIONS)
        )

    def reduction_fits(self, op: Op, g: Group) -> bool:
        full, axes = shape_of(op.operands[0]), axes_of(op)
        if op.name in ("argmax", "argmin") and g.kind == "rowwise" and g.full != full:
            return False
        if g.kind == "rowwise" and (g.full, g.axes) != (full, axes):
            return False
        if g.kind not in ("pointwise", "rowwise"):
            return False
        if not all(self.in_row_space(m, full, axes) for m in g.members):
            return False
        return rows_agree(self.ordered(g.members | {op}), g.outs, full, axes)

    def ordered(self, ops: Iterable[Op]) -> list[Op]:
        return sorted(ops, key=self.position.__getitem__)

    def row_fits(self, op: Op, g: Group) -> bool:
        assert g.full is not None and g.axes is not None
        if any(u.name in INDEXING and u.name not in ("broadcast", "reshape") for u in self.users[op] if u in g.members):
            return self.cheap(op)
        return self.in_row_space(op, g.full, g.axes)

    def once_a_row(self, op: Op, g: Group) -> bool:
        """The value is indexed by the row alone, so the kernel computes it once a row."""
        assert g.full is not None and g.axes is not None
        return shape_of(op.results[0]) in row_shapes(g.full, g.axes)

    def in_row_space(self, op: Op, full: tuple[Dim, ...], axes: tuple[int, ...]) -> bool:
        """The result is indexed by the full index, by the row (reduced axes dropped or of size 1), or broadcasts along it."""
        shape = shape_of(op.results[0])
        if shape in (full, *row_shapes(full, axes)) or op.name == "const":
            return True
        # A weight along the row: smaller rank, sizes equal to the trailing ones or 1; only if it depends on no reduction.
        tail = full[len(full) - len(shape) :]
        return (
            len(shape) <= len(full)
            and all(a in (1, b) for a, b in zip(shape, tail, strict=True))
            and not any(v.owner is not None and v.owner.name in REDUCTIONS for v in op.operands)
        )

    def extra_output_home(self, op: Op, homes: list[Group]) -> Group | None:
        """A group that may also write this op's value, which others need too: same index space, and no cycle."""
        if len(homes) != 1:
            return None
        g = homes[0]
        if op.name in REDUCTIONS and g.kind == "rowwise":
            return None if self.reaches_from_outside(op, g) else g
        if not elementwise(op):
            return None
        shape = shape_of(op.result)
        if g.kind == "pointwise":
            if any(self.walked(o, g) != shape for o in g.outs) or not all(
                elementwise(m) or m.name == "const" or self.joins(m, g) for m in g.members
            ):
                return None
        elif g.kind == "rowwise":
            assert g.full is not None and g.axes is not None
            if shape not in (g.full, *row_shapes(g.full, g.axes)):
                return None
            if not rows_agree(self.ordered(g.members | {op}), g.outs | {op}, g.full, g.axes):
                return None
        else:
            return None
        return None if self.reaches_from_outside(op, g) else g

    def reaches_from_outside(self, op: Op, g: Group) -> bool:
        """Whether a path from `op` through ops outside `g` leads back into it (the groups would wait for each other)."""
        return self.path_exists([op], g, {g})

    def path_exists(self, outs: Iterable[Op], goal: Group, apart: set[Group], limit: int = 400) -> bool:
        """Whether `goal` needs a result of `outs` by way of others than those that read it themselves in `apart`; True also
        when it takes too long to tell. An op copied into several groups is read by each of them."""
        seen: set[Op | Group] = set()
        todo = [u for o in outs for u in self.readers(o) if u not in apart]
        while todo:
            unit = todo.pop()
            if unit is goal:
                return True
            if unit in seen:
                continue
            if len(seen) > limit:
                return True
            seen.add(unit)
            todo += [u for o in (unit.outs if isinstance(unit, Group) else (unit,)) for u in self.readers(o)]
        return False

    def readers(self, op: Op) -> list[Op | Group]:
        """The groups, and ops outside of groups, that read a result of the op."""
        return [unit for u in self.users[op] for unit in (self.of.get(u) or (u,))]

    def merge_siblings(self, homes: list[Group], read: Value) -> list[Group]:
        """Join groups that would read the same value: one pass over memory, several outputs."""
        first, *rest = homes
        kept = [first]
        for h in rest:
            if self.may_merge(first, h, read):
                if h.kind == "rowwise":
                    first.kind, first.full, first.axes, first.root = h.kind, h.full, h.axes, first.root or h.root
                first.members |= h.members
                first.outs |= h.outs
                for m in h.members:
                    self.of[m] = list(dict.fromkeys(first if x is h else x for x in self.of[m]))
                h.members, h.outs = set(), set()
                self.cx.rules["fuse siblings"] += 1
            else:
                kept.append(h)
        return kept

    def merge_horizontally(self) -> None:
        """Join groups over one space that read the same memory and do not depend on each other."""
        readers: dict[Value, list[Group]] = {}
        for g in self.groups:
            if g.kind in ("pointwise", "rowwise") and g.members:
                for v in self.inputs(g):
                    readers.setdefault(v, []).append(g)
        for v, groups in readers.items():
            live = list(dict.fromkeys(g for g in groups if g.members))
            for at, g in enumerate(live):
                for h in live[at + 1 : at + 9]:
                    if g.members and h.members:
                        self.merge_siblings([g, h], v)

    def may_merge(self, g: Group, h: Group, read: Value) -> bool:
        """Whether two groups that read a value can be one: the value is as large as what they walk, they walk it alike, and
        nothing outside stands between them."""
        if g is h or len(g.members) + len(h.members) > self.max_ops:
            return False
        outs = g.outs | h.outs
        rows = next((x for x in (g, h) if x.kind == "rowwise"), None)
        if rows is None:
            shapes = {self.walked(o, x) for x in (g, h) for o in x.outs}
            if g.kind != "pointwise" or h.kind != "pointwise" or len(shapes) != 1:
                return False
            if len({any(read in m.operands and not elementwise(m) for m in x.members) for x in (g, h)}) != 1:
                return (
                    False  # one of them in another order: no pass is saved, and results could no longer replace inputs
                )
            (space,) = shapes
        else:
            assert rows.full is not None and rows.axes is not None
            space = rows.full
            if not all(self.walks_rows(x, space, rows.axes) for x in (g, h)):
                return False
            if not rows_agree(self.ordered(g.members | h.members), outs, space, rows.axes):
                return False
        if not prove_le(product(space), read.type.size):  # type: ignore[union-attr]
            return False
        # One pass over rows may read what it has itself computed a row; two pointwise groups may not depend on each other.
        direct = {g, h} if rows is not None else set()
        return not self.path_exists(g.outs, h, direct or {g}) and not self.path_exists(h.outs, g, direct or {h})

    @staticmethod
    def walks_rows(g: Group, full: tuple[Dim, ...], axes: tuple[int, ...]) -> bool:
        """The group is a pass over these rows; or pointwise on their space, where the rows are many."""
        if g.kind == "rowwise":
            return (g.full, g.axes) == (full, axes)
        rows = product(d for i, d in enumerate(full) if i not in axes)
        if g.kind != "pointwise" or (isinstance(rows, int) and rows < FEW_ROWS):
            return False
        return all(shape_of(o.results[0]) == full for o in g.outs)
