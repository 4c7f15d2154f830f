"""The `lift` pass: contractions of a scan that no round needs from another one leave the loop, all rounds at once.

A product of a few rows is bound by reading the matrix; the same product of the rows of all rounds is not. Three forms:

- before the loop: `dot` of a slice of a sequence and of a constant becomes one `dot` of the sequence, whose slices the
  body then reads;
- after the loop: a stacked result that is `dot` of a value and of a constant, where the value is stacked instead;
- after the loop: a carry that only adds up (`carry + dot(x, y)`, `carry + sum(x)`: the gradient of what a loop reads in
  every round), where x and y are stacked and the rounds are contracted with the other axes.

The price is memory for what is stacked, so a form is used where a round stacks no more than the matrix or the carry has
elements, which also makes it less to move. The order of additions changes in the third form, as it does when any sum is cut
into parts. Tensor level; a `while` has no number of rounds to stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, prove_le
from fluxir.ir.rewrite import rewrite_func
from fluxir.ops.contract import dot_axes
from fluxir.ops.control import scan_length
from fluxir.passes.manager import PassContext, pass_

MOVES = ("transpose", "reshape")  # what may stand between a contraction and the sum it is added to


@pass_("lift")
def lift(func: Func, cx: PassContext) -> Func:
    """Take contractions that need no other round out of scans, as one contraction over all rounds."""

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "scan" or not any(o.name == "dot" for o in blocks[0].ops):
            return None
        loop = _Loop(op, operands, blocks[0])
        loop.before()
        loop.sums()
        loop.after()
        if not loop.count:
            return None
        cx.rules["lift"] += loop.count
        return loop.emit(b)

    return rewrite_func(func, visit)


class _Loop:
    """A scan and what is to be taken out of it."""

    def __init__(self, op: Op, operands: Sequence[Value], block: Block) -> None:
        self.op, self.block = op, block
        nc, nk = op.attrs["carry"], op.attrs["consts"]
        self.carry, self.consts, self.sequences = operands[:nc], operands[nc : nc + nk], operands[nc + nk :]
        self.args = block.args[:nc]
        self.constant = dict(zip(block.args[nc : nc + nk], self.consts, strict=True))
        self.slice = dict(zip(block.args[nc + nk :], self.sequences, strict=True))
        self.outs, self.yields = list(block.outs[:nc]), list(block.outs[nc:])
        self.uses: dict[Value, int] = {}
        for v in (*[v for o in block.walk() for v in o.operands], *[v for k in _blocks(block) for v in k.outs]):
            self.uses[v] = self.uses.get(v, 0) + 1
        self.early: list[Op] = []  # dots whose results become sequences
        self.totals: dict[int, Op] = {}  # carry: the dot or sum that is added up
        self.late: dict[int, Op] = {}  # yield: the dot that is computed after the loop
        self.stacked: dict[Value, None] = {}  # values of the body that the loop has to stack for these

    @property
    def count(self) -> int:
        return len(self.early) + len(self.totals) + len(self.late)

    # ---- what can leave
    def before(self) -> None:
        """Dots of a slice and a constant."""
        for op in self.block.ops:
            if op.name != "dot" or op.attrs["lhs_batch"]:
                continue
            for x, w in (op.operands, op.operands[::-1]):
                if x in self.slice and w in self.constant and prove_le(_size(op.result), _size(w)):
                    self.early.append(op)
                    break

    def sums(self) -> None:
        """Carries to which every round adds a dot, or the sum of what is stacked anyway."""
        for name in ("dot", "sum"):
            for k, out in enumerate(self.outs):
                e = self.added(k, out)
                if e is None or e.name != name or any(v in self.constant for v in e.operands):
                    continue
                new = {v: None for v in e.operands if v not in self.slice and not self.is_stacked(v)}
                if (name == "sum" and new) or not prove_le(sum((_size(v) for v in new), 0), _size(self.args[k])):
                    continue
                if not e.result.type.dtype.is_float or e.result.type.dtype.bits < 32:
                    continue
                self.totals[k] = e
                self.stacked |= new

    def added(self, k: int, out: Value) -> Op | None:
        """The op whose result is all that a round adds to carry k, which nothing else reads."""
        if out.owner is None or out.owner.name != "add" or out.owner not in self.block.ops:
            return None
        if self.uses.get(out) != 1 or self.uses.get(self.args[k]) != 1 or self.args[k] not in out.owner.operands:
            return None
        x, y = out.owner.operands
        v = y if x is self.args[k] else x
        if v.type != out.type:
            return None
        e = v.owner
        while e is not None and e.name in MOVES and self.uses[e.result] == 1:
            e = e.operands[0].owner
        return e if e in self.block.ops else None

    def after(self) -> None:
        """Stacked dots of a value and a constant that the loop itself does not read."""
        for j, y in enumerate(self.yields):
            e = y.owner
            if e is None or e.name != "dot" or e in self.early or self.uses[y] != 1 or e.attrs["lhs_batch"]:
                continue
            x, w = e.operands if e.operands[1] in self.constant else e.operands[::-1]
            if w not in self.constant or x in self.constant:
                continue
            free = x in self.slice or self.is_stacked(x)
            if free or (prove_le(_size(x), _size(y)) and prove_le(_size(y), _size(w))):
                self.late[j] = e
                if not free:
                    self.stacked[x] = None

    def is_stacked(self, v: Value) -> bool:
        return v in self.stacked or v in self.yields

    # ---- the new loop
    def emit(self, b: Builder) -> list[Value]:
        sequences = [
            *self.sequences,
            *[_batched(b, o, {**self.constant, **self.slice}, self.slice) for o in self.early],
        ]
        kept = [k for k in range(len(self.carry)) if k not in self.totals]
        dropped = {self.yields[j] for j in self.late}
        yields = list(dict.fromkeys([v for v in self.yields if v not in dropped] + list(self.stacked)))
        block = self.body(kept, yields)
        length = scan_length(self.op.attrs, self.op.operands)
        results = b.emit(
            "scan", *[self.carry[k] for k in kept], *self.consts, *sequences, blocks=[block],
            carry=len(kept), consts=len(self.consts), reverse=self.op.attrs["reverse"],
            length=None if sequences else length,
        )  # fmt: skip
        carries = dict(zip(kept, results))
        whole = {**self.constant, **self.slice, **dict(zip(yields, results[len(kept) :], strict=True))}
        for k, e in self.totals.items():
            carries[k] = b.add(self.carry[k], self.moved(b, k, e, _total(b, e, whole)))
        made = {j: _batched(b, e, whole, {v for v in whole if v not in self.constant}) for j, e in self.late.items()}
        return [
            *[carries[k] for k in range(len(self.carry))],
            *[made[j] if j in made else whole[v] for j, v in enumerate(self.yields)],
        ]

    def moved(self, b: Builder, k: int, e: Op, total: Value) -> Value:
        """What becomes of the result of `e` on its way to carry k, done to the total."""
        add = self.outs[k].owner
        assert add is not None
        op, moves = next(v for v in add.operands if v is not self.args[k]).owner, []
        while op is not None and op is not e:
            moves.append(op)
            op = op.operands[0].owner
        for move in reversed(moves):
            (total,) = b.clone(move, [total])
        return total

    def body(self, kept: Sequence[int], yields: Sequence[Value]) -> Block:
        """The loop's block without what has left it; the results of early dots are slices of new sequences."""
        first = len(self.args)
        old = [*[self.args[k] for k in kept], *self.block.args[first:], *[o.result for o in self.early]]
        args = [Value(v.type, None, i, v.name) for i, v in enumerate(old)]
        env: dict[Value, Value] = dict(zip(old, args, strict=True))
        outs = [*[self.outs[k] for k in kept], *yields]
        live, ops = set(outs), []
        for op in reversed(self.block.ops):
            if op not in self.early and (op.defn.effects or any(r in live for r in op.results)):
                live.update(op.operands)
                ops.append(op)
        b = Builder()
        clone_ops(b, ops[::-1], env)
        return Block(args, b.ops, [env[v] for v in outs])


def _blocks(block: Block) -> list[Block]:
    return [block, *[inner for o in block.ops for k in o.blocks for inner in _blocks(k)]]


def _size(v: Value) -> Dim:
    return v.type.size  # type: ignore[union-attr]


def _batched(b: Builder, e: Op, whole: dict[Value, Value], of: Any) -> Value:
    """A dot of one value that has all rounds in front (those in `of`) and one that is the same in each: rounds in front."""
    x, y = e.operands
    _, lf, lc, _, rf, rc = dot_axes(x.type, y.type, e.attrs)
    left = x in of
    if left:
        return b.dot(whole[x], whole[y], lhs_contract=_behind(lc), rhs_contract=rc)  # type: ignore[no-any-return]
    r = b.dot(whole[y], whole[x], lhs_contract=_behind(rc), rhs_contract=lc)
    n, m = len(lf), len(rf)
    if n and m:  # rounds, free axes of y, free axes of x
        r = b.transpose(r, perm=(0, *range(1 + m, 1 + m + n), *range(1, 1 + m)))
    return r  # type: ignore[no-any-return]


def _total(b: Builder, e: Op, whole: dict[Value, Value]) -> Value:
    """The sum over all rounds of a dot or a sum of values with the rounds in front."""
    if e.name == "sum":
        (x,) = e.operands
        axes = tuple(a % len(x.type.shape) for a in e.attrs["axes"])
        r = b.emit("sum", whole[x], axes=(0, *_behind(axes)))[0]
        return r if not e.attrs["keepdims"] else b.reshape(r, shape=e.result.type.shape)
    x, y = e.operands
    lb, _, lc, rb, _, rc = dot_axes(x.type, y.type, e.attrs)
    return b.dot(  # type: ignore[no-any-return]
        whole[x], whole[y], lhs_contract=(0, *_behind(lc)), rhs_contract=(0, *_behind(rc)),
        lhs_batch=_behind(lb), rhs_batch=_behind(rb),
    )  # fmt: skip


def _behind(axes: Sequence[int]) -> tuple[int, ...]:
    """Axes of a value, in the value with the rounds in front."""
    return tuple(a + 1 for a in axes)


__all__ = ["lift"]
