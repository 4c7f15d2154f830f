"""The last step of fusion: groups become `fused` ops, in an order that respects what they need of each other and frees memory
early."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.rewrite import has_effects
from fluxir.passes.fuse_group import Group, is_view

if TYPE_CHECKING:
    from fluxir.passes.fuse import Grouping


class Emission:
    """The block of a `Grouping`. `inner` fuses a block of a region."""

    def __init__(self, grouping: Grouping, inner: Callable[[Block], Block]) -> None:
        self.g, self.fuse_inner = grouping, inner
        self.inner: dict[Op, list[Block]] = {}  # regions of control flow, fused

    def emit(self) -> Block:
        """The block with one `fused` op a group, in an order that respects their dependencies."""
        self.hoist_views()
        self.inner = {
            op: [self.fuse_inner(k) for k in op.blocks]
            for op in self.g.block.ops if op.blocks and op.name not in ("fused", "iterate")
        }  # fmt: skip
        unchanged = all(x is y for op, new in self.inner.items() for x, y in zip(new, op.blocks, strict=True))
        if unchanged and not any(g.members and g.kind != "view" for g in self.g.groups):
            return self.g.block
        units: list[Group | Op] = []
        for op in self.g.block.ops:
            if op not in self.g.of:
                if self.g.users[op] or op in self.g.returned or has_effects(op):
                    units.append(op)
        units += [g for g in self.g.groups if g.members]
        made_by: dict[Op, Group | Op] = {}
        for u in units:
            for o in u.outs if isinstance(u, Group) else (u,):
                made_by[o] = u
        needs: dict[int, list[Group | Op]] = {}
        for u in units:
            owners = [v.owner for v in self.g.inputs(u) if v.owner is not None]
            needs[id(u)] = [made_by[o] for o in owners]
        b = Builder()
        env: dict[Value, Value] = {}
        done: set[int] = set()
        begun: set[int] = set()
        last = self.last_readers(units, needs)
        order = sorted(
            units, key=lambda u: max(self.g.position[o] for o in u.outs) if isinstance(u, Group) else self.g.position[u]
        )
        for unit in order:
            stack: list[tuple[Group | Op, bool]] = [(unit, False)]
            while stack:
                u, ready = stack.pop()
                if id(u) in done:
                    continue
                if ready:
                    done.add(id(u))
                    self.emit_unit(b, u, env)
                    for s, before in last.get(id(u), ()):
                        before.discard(id(u))
                        if not before and id(s) not in begun:
                            begun.add(id(s))
                            stack.append((s, True))
                else:
                    assert id(u) not in begun, "groups that wait for each other"
                    begun.add(id(u))
                    stack.append((u, True))
                    stack += [(n, False) for n in needs[id(u)] if id(n) not in done]
        return Block(self.g.block.args, b.ops, [env.get(v, v) for v in self.g.block.outs])

    def last_readers(
        self, units: list[Group | Op], needs: dict[int, list[Group | Op]]
    ) -> dict[int, list[tuple[Group | Op, set[int]]]]:
        """For each unit the groups that may run once it and others (a set that is shared) have run: groups of which nothing but
        results of the block comes, and which are the last to read its arguments. They run early: what they read is freed,
        and the results may take the place of the arguments (parameters that an optimiser moves)."""
        readers: dict[Value, list[Group | Op]] = {}
        for u in units:
            for v in self.g.inputs(u):
                readers.setdefault(v, []).append(u)
        found: dict[int, list[tuple[Group | Op, set[int]]]] = {}
        for u in units:
            if not isinstance(u, Group) or u.kind == "view":
                continue
            if not all(o in self.g.returned and u.members.issuperset(self.g.users[o]) for o in u.outs):
                continue
            before = {id(n) for n in needs[id(u)]}
            todo = [v for v in self.g.inputs(u) if v.owner is None]
            while todo:
                for r in readers.get(todo.pop(), ()):
                    if r is not u:
                        before.add(id(r))
                        todo += [o.result for o in _views(r)]
            for n in before:
                found.setdefault(n, []).append((u, before))
        return found

    def hoist_views(self) -> None:
        """Take a reshape of a group's input out of the group: outside it is a view, inside it is index arithmetic."""
        for g in self.g.groups:
            again = True
            while again:
                again = False
                for m in self.g.ordered(g.members):
                    source = m.operands[0].owner if m.operands else None
                    if is_view(m) and (source is None or source not in g.members) and m not in g.outs:
                        g.members.discard(m)
                        homes = self.g.of[m]
                        homes.remove(g)
                        if not homes:
                            del self.g.of[m]
                        view = Group(len(self.g.groups), {m}, {m}, "view")
                        existing = next((h for h in self.g.groups if h.kind == "view" and m in h.members), None)
                        if existing is None:
                            self.g.groups.append(view)
                            self.g.of.setdefault(m, []).append(view)
                        again = True
            if len(g.members) == 1 and g.kind == "pointwise":
                (m,) = g.members
                if is_view(m):
                    g.kind = "view"

    def emit_unit(self, b: Builder, u: Group | Op, env: dict[Value, Value]) -> None:
        if isinstance(u, Op):
            blocks = self.inner.get(u, u.blocks)
            for old, new in zip(u.results, b.clone(u, [env.get(v, v) for v in u.operands], blocks), strict=True):
                env[old] = new
            return
        members = self.g.ordered(u.members)
        if u.kind == "view":
            (m,) = members
            env[m.result] = b.clone(m, [env.get(v, v) for v in m.operands])[0]
            return
        inputs = self.g.inputs(u)
        args = [Value(v.type, None, i, v.name) for i, v in enumerate(inputs)]
        inner: dict[Value, Value] = dict(zip(inputs, args, strict=True))
        body = Builder()
        clone_ops(body, members, inner)
        outs = [r for o in self.g.ordered(u.outs) for r in o.results]
        region = Block(args, body.ops, [inner[r] for r in outs])
        loc = (u.root or members[-1]).loc
        results = b.emit(
            "fused", *[env.get(v, v) for v in inputs], blocks=[region], loc=loc, kind=u.kind, name=_name(members)
        )
        self.g.cx.rules[f"fuse {u.kind}"] += 1
        for old, new in zip(outs, results, strict=True):
            env[old] = new
            new.name = old.name


def _views(unit: Group | Op) -> Iterable[Op]:
    """The reshape of memory that a unit is, if it is one."""
    if isinstance(unit, Op):
        return (unit,) if is_view(unit) else ()
    return unit.outs if unit.kind == "view" else ()


def _name(members: Iterable[Op]) -> str:
    """A readable kernel name from the ops that matter."""
    words = [m.name for m in members if m.name not in ("const", "broadcast", "reshape", "cast")] or [
        m.name for m in members
    ]
    short = list(dict.fromkeys(words))
    return "_".join(short[:4] + (["etc"] if len(short) > 4 else []))


__all__ = ["Emission"]
