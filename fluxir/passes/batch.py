"""Batching (vmap): a block on one more axis in front of some of its arguments, for all lanes of that axis at once.

Each value has the batch axis first, or is the same for all lanes and has none (its flag is false); nothing is repeated before
it must be. Ordinary ops follow their `batch` rule (ops/batching.py). Control flow:
- A branch or loop whose condition is the same for all lanes stays what it is.
- Where lanes disagree, both branches run and each lane selects; a loop runs while any lane goes on, and finished lanes keep
  their carry. Lanes that do not take part must do no harm: code that could fail to end or to hold for them (`while`, `call`,
  `assert`) computes on the operands of a lane that does, and a branch of such code that no lane takes does not run.
- The same holds for derivatives: the cotangents of lanes that do not take part are 0, and 0 times an infinite partial
  derivative must not reach the others. `_guard` chooses the cheapest way that makes this so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fluxir.ir.build import Builder, as_values
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, Poly, symbol, symbols_of
from fluxir.ir.types import INDEX, TensorType, Type
from fluxir.ops.adjoint import is_float, zeros
from fluxir.ops.batching import aligned, elementwise, lanes, moved, one_by_one, whole
from fluxir.ops.control import scan_length
from fluxir.ops.maps import is_elementwise
from fluxir.passes.iterate import mask_of
from fluxir.passes.reverse import Context

Flags = Sequence[bool]
Varying = Sequence[tuple[str, int]]  # size symbols that are the value of an argument, which differs between lanes


def batched_type(t: Type, size: Dim) -> TensorType:
    """The type with the batch axis in front."""
    assert isinstance(t, TensorType)
    return TensorType(t.dtype, (size, *t.shape))


def batch_block(cx: Context, func: Func, wrt: Collection[int], size: Dim, varying: Varying = ()) -> Block:
    """The block of `func` with a batch axis of `size` on the arguments `wrt` and on all results.

    A symbol that is `varying` is a size known at run time, and another one for each lane: the block takes the largest of them
    as one more argument for each, and the loops of that length stop where their lane's ends.
    """
    block = func.block
    flags = [i in wrt for i in range(len(block.args))]
    types = [batched_type(a.type, size) if f else a.type for a, f in zip(block.args, flags, strict=True)]
    apart = bool(varying) and not _maskable(cx, block, {s for s, _ in varying})

    def body(b: Builder, *args: Value) -> Sequence[Value]:
        if size == 0:
            return [zeros(b, batched_type(v.type, size)) for v in block.outs]
        given = args[: len(flags)]
        if apart:
            return _calls_one_by_one(b, func, given, flags, size, varying)
        lane = Lanes(cx, b, size, {s: given[i] for s, i in varying})
        outs, of = lane.run(block, given, flags)
        return [whole(b, v, f, size) for v, f in zip(outs, of, strict=True)]

    made: Block = Builder(func.loc).block([*types, *[INDEX] * len(varying)], body, [a.name for a in block.args])
    return made


# ---- which values differ between lanes ------------------------------------------------------------------------------------


def batched_results(block: Block, flags: Flags) -> list[bool]:
    """Which results of a block differ between lanes when its flagged arguments do."""
    known = {a for a, f in zip(block.args, flags, strict=True) if f}
    for op in block.ops:
        if any(v in known for v in op.operands):
            found = _results(op, [v in known for v in op.operands])
            known.update(r for r, f in zip(op.results, found, strict=True) if f)
    return [v in known for v in block.outs]


def _results(op: Op, flags: Flags) -> list[bool]:
    if op.name == "if" and not flags[0]:
        sides = [batched_results(k, flags[1:]) for k in op.blocks]
        return [any(s) for s in zip(*sides, strict=True)]
    if op.name == "scan":
        return batched_results(op.blocks[0], _loop_flags(op, flags))
    if op.name == "while":
        return _while_flags(op, flags)[0][: len(op.results)]
    return [True] * len(op.results)


def _loop_flags(op: Op, flags: Flags) -> list[bool]:
    """The flags of a loop body's arguments, through any number of rounds."""
    body, n = op.blocks[-1], op.attrs["carry"]
    flags = list(flags)
    while True:
        more = [x or y for x, y in zip(flags[:n], batched_results(body, flags)[:n], strict=True)]
        if more == flags[:n]:
            return flags
        flags = [*more, *flags[n:]]


def _while_flags(op: Op, flags: Flags) -> tuple[list[bool], bool]:
    """The flags of a `while`'s operands, and whether lanes go on for different numbers of rounds."""
    n = op.attrs["carry"]
    flags = _loop_flags(op, flags)
    if not batched_results(op.blocks[0], flags)[0]:
        return flags, False
    return [*[True] * n, *flags[n:]], True


# ---- lanes that do not take part ------------------------------------------------------------------------------------------

_MAY_FAIL = ("while", "call", "assert", "kernel")
# Float ops whose partial derivatives are bounded wherever their operands are; linear ones and those without derivative too.
_TAME = frozenset(
    "add sub neg mul fma maximum minimum clamp select abs copysign tanh sigmoid sin cos erf atan max min cummax cummin sort topk"
    " dynamic_update reduce_window relu relu6 leaky_relu softsign hard_sigmoid hard_swish mean softmax logsoftmax".split()
)


def _guard(block: Block, flags: Flags) -> str:
    """What operands lanes that do not take part compute on:

    "own": their own, nothing in the block can do harm. "cut": their own, without a derivative, so that a cotangent of
    0 * inf ends there. "other": those of a lane that takes part, as something could fail, or such a cotangent would reach
    an operand that all lanes share.
    """
    ops = list(block.walk())
    if any(op.name in _MAY_FAIL for op in ops):
        return "other"
    if not any(map(_wild, ops)):
        return "own"
    shared = any(is_float(a) and not f for a, f in zip(block.args, flags, strict=True))
    return "other" if shared else "cut"


def _wild(op: Op) -> bool:
    d = op.defn
    return not (op.blocks or d.linear or d.constant or op.name in _TAME) and any(map(is_float, op.operands))


def _harmless(b: Builder, how: str, mask: Value, xs: Sequence[Value], flags: Flags, size: Dim) -> list[Value]:
    """The operands with harmless values in the lanes where `mask` does not hold (see `_guard`)."""
    if how == "own":
        return list(xs)
    if how == "cut":
        return [
            b.select(aligned(b, mask, len(x.shape) - 1), x, b.stop_gradient(x)) if f and is_float(x) else x
            for x, f in zip(xs, flags, strict=True)
        ]
    lane = b.select(mask, lanes(b, size), b.argmax(mask, axis=0))
    return [b.gather(x, lane, axes=(0,)) if f else x for x, f in zip(xs, flags, strict=True)]


# ---- emitting ---------------------------------------------------------------------------------------------------------------


class Lanes:
    """Emits the ops of blocks for all lanes into builder `b`. `counts`: the values of varying sizes, one a lane."""

    def __init__(self, cx: Context, b: Builder, size: Dim, counts: Mapping[str, Value] | None = None) -> None:
        self.cx, self.b, self.size, self.counts = cx, b, size, counts or {}

    def run(self, block: Block, args: Sequence[Value], flags: Flags) -> tuple[list[Value], list[bool]]:
        """The block's ops on `args`: what it yields, and which of that has the batch axis."""
        b = self.b
        env = dict(zip(block.args, args, strict=True))
        batched = {v for v, f in zip(block.args, flags, strict=True) if f}
        for op in block.ops:
            b.loc = op.loc
            xs = [env[v] for v in op.operands]
            given = [v in batched for v in op.operands]
            results, of = self.op(op, xs, given)
            env.update(zip(op.results, results, strict=True))
            batched.update(r for r, f in zip(op.results, of, strict=True) if f)
            for old, new in zip(op.results, results, strict=True):
                new.name = new.name or old.name
        return [env[v] for v in block.outs], [v in batched for v in block.outs]

    def op(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        if self.counts:
            count = self.counts.get(_length_symbol(op))
            if count is not None:
                return ([count], [True]) if op.name == "dim" else self.masked_scan(op, xs, flags, count)
        if not any(flags):
            return self.b.clone(op, xs), [False] * len(op.results)
        region = getattr(self, f"op_{op.name}", None)
        if region is not None:
            return region(op, xs, flags)  # type: ignore[no-any-return]
        rule = op.defn.batch or (elementwise if is_elementwise(op) else None)
        if rule is None and op.defn.expand is not None:
            inner = Builder(op.loc)
            outs = as_values(op.defn.expand(inner, op))
            return self.run(Block(op.operands, inner.ops, outs), xs, flags)
        return (rule or one_by_one)(self.b, op, xs, flags, self.size), [True] * len(op.results)

    def inside(self, b: Builder) -> Lanes:
        """The same in a region."""
        return Lanes(self.cx, b, self.size)

    def types(self, values: Sequence[Value], flags: Flags) -> list[Type]:
        return [batched_type(v.type, self.size) if f else v.type for v, f in zip(values, flags, strict=True)]

    def region(self, block: Block, flags: Flags, of: Flags) -> Block:
        """A region on flagged arguments; its results `of` have the batch axis."""

        def body(k: Builder, *args: Value) -> list[Value]:
            outs, have = self.inside(k).run(block, args, flags)
            return self.spread(k, outs, have, of)

        made: Block = self.b.block(self.types(block.args, flags), body, [a.name for a in block.args])
        return made

    def spread(self, b: Builder, values: Sequence[Value], have: Flags, want: Flags) -> list[Value]:
        return [whole(b, v, False, self.size) if w and not h else v for v, h, w in zip(values, have, want, strict=True)]

    def chosen(self, b: Builder, mask: Value, x: Value, y: Value, rank: int) -> Value:
        """Per lane `x` or `y`, whose elements have `rank` axes; either may be the same for all lanes."""
        return b.select(aligned(b, mask, rank), x, y)  # type: ignore[no-any-return]

    # ---- control flow
    def op_if(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        p, *operands = xs
        b, given = self.b, flags[1:]
        if not flags[0]:
            of = _results(op, flags)
            regions = [self.region(k, given, of) for k in op.blocks]
            return b.emit("if", p, *operands, blocks=regions, loc=op.loc), of
        then = self.side(op.blocks[0], p, operands, given)
        other = self.side(op.blocks[1], b.logical_not(p), operands, given)
        every = zip(op.results, then, other, strict=True)
        return [self.chosen(b, p, x, y, len(r.shape)) for r, x, y in every], [True] * len(op.results)

    def side(self, block: Block, mask: Value, xs: Sequence[Value], flags: Flags) -> Sequence[Value]:
        """One branch for the lanes where `mask` holds; other lanes get anything."""
        b, size = self.b, self.size
        how = _guard(block, flags)
        if how != "other":
            return self.run(block, _harmless(b, how, mask, xs, flags, size), flags)[0]

        def taken(k: Builder, m: Value, *args: Value) -> list[Value]:
            outs, of = self.inside(k).run(block, _harmless(k, how, m, args, flags, size), flags)
            return [whole(k, v, f, size) for v, f in zip(outs, of, strict=True)]

        def untaken(k: Builder, m: Value, *args: Value) -> list[Value]:
            return [zeros(k, batched_type(v.type, size)) for v in block.outs]

        types = [mask.type, *[x.type for x in xs]]
        return b.emit("if", b.any(mask, axes=(0,)), mask, *xs, blocks=[b.block(types, taken), b.block(types, untaken)])

    def op_scan(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        b, nc, first = self.b, op.attrs["carry"], op.attrs["carry"] + op.attrs["consts"]
        want = _loop_flags(op, flags)
        of = batched_results(op.blocks[0], want)
        of[:nc] = want[:nc]
        operands = self.spread(b, xs, flags, want)
        for i in range(first, len(xs)):
            operands[i] = moved(b, operands[i], 0, 1) if flags[i] else operands[i]
        out = b.clone(op, operands, [self.region(op.blocks[0], want, of)], length=scan_length(op.attrs, op.operands))
        return [moved(b, r, 1, 0) if of[j] and j >= nc else r for j, r in enumerate(out)], of

    def masked_scan(
        self, op: Op, xs: Sequence[Value], flags: Flags, count: Value
    ) -> tuple[Sequence[Value], Sequence[bool]]:
        """A scan of as many rounds as the longest lane has: a lane whose rounds are over keeps its carry, and what it would
        stack is 0."""
        b, size, body = self.b, self.size, op.blocks[0]
        nc, nk = op.attrs["carry"], op.attrs["consts"]
        want = [*[True] * nc, *flags[nc:]]
        how = _guard(body, want)
        carry, consts, sequences = xs[:nc], xs[nc : nc + nk], list(xs[nc + nk :])
        sequences = [moved(b, x, 0, 1) if f else x for x, f in zip(sequences, flags[nc + nk :], strict=True)]
        rounds = b.iota(shape=(scan_length(op.attrs, op.operands),), axis=0, dtype="i64")
        operands = [*self.spread(b, carry, flags[:nc], want[:nc]), count, *consts, rounds, *sequences]

        def step(k: Builder, *args: Value) -> list[Value]:
            state, (counts, *fixed), (i, *slices) = args[:nc], args[nc : nc + nk + 1], args[nc + nk + 1 :]
            active = k.lt(i, counts)
            given = _harmless(k, how, active, [*state, *fixed, *slices], want, size)
            outs, _ = self.inside(k).run(body, given, want)
            rest = [*state, *[k.const(0, dtype=v.dtype) for v in body.outs[nc:]]]
            new = [self.chosen(k, active, v, r, len(o.shape)) for v, r, o in zip(outs, rest, body.outs, strict=True)]
            return new

        inner = self.types(body.args, want)
        types = [*inner[:nc], count.type, *inner[nc : nc + nk], INDEX, *inner[nc + nk :]]
        out = b.emit("scan", *operands, blocks=[b.block(types, step)], carry=nc, consts=nk + 1,
                     reverse=op.attrs["reverse"], length=scan_length(op.attrs, op.operands), loc=op.loc)  # fmt: skip
        return [moved(b, r, 1, 0) if j >= nc else r for j, r in enumerate(out)], [True] * len(out)

    def op_while(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        b, size, n = self.b, self.size, op.attrs["carry"]
        cond, body = op.blocks
        want, apart = _while_flags(op, flags)
        operands = self.spread(b, xs, flags, want)
        if apart and mask_of(op) is not None:  # more rounds do not change a lane that is done

            def any_goes_on(k: Builder, *args: Value) -> Value:
                (p,), (f,) = self.inside(k).run(cond, args, want)
                return k.any(whole(k, p, f, size), axes=(0,))  # type: ignore[no-any-return]

            over = b.block(self.types(cond.args, want), any_goes_on)
            regions = [over, self.region(body, want, want[:n])]
            return b.emit("while", *operands, blocks=regions, carry=n, loc=op.loc), want[:n]
        if not apart:
            regions = [self.region(cond, want, [False]), self.region(body, want, want[:n])]
            return b.emit("while", *operands, blocks=regions, carry=n, loc=op.loc), want[:n]
        how = _guard(body, want)

        def goes_on(k: Builder, args: Sequence[Value]) -> Value:
            (p,), (f,) = self.inside(k).run(cond, args, want)
            return whole(k, p, f, size)

        def test(k: Builder, p: Value, *args: Value) -> Value:
            return k.any(p, axes=(0,))  # type: ignore[no-any-return]

        def step(k: Builder, p: Value, *args: Value) -> list[Value]:
            outs, _ = self.inside(k).run(body, _harmless(k, how, p, args, want, size), want)
            state = [self.chosen(k, p, v, c, len(o.shape)) for v, c, o in zip(outs, args, body.outs, strict=False)]
            return [k.logical_and(p, goes_on(k, [*state, *args[n:]])), *state]

        start = goes_on(b, operands)
        types = [start.type, *[x.type for x in operands]]
        blocks = [b.block(types, test), b.block(types, step)]
        out = b.emit("while", start, *operands, blocks=blocks, carry=n + 1, loc=op.loc)
        return out[1:], [True] * n

    def op_call(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        functions, a, size = self.cx.functions, op.attrs, self.size
        if a["rules"]:  # the rules see all operands of a lane, and give cotangents of a lane
            xs, flags = self.spread(self.b, xs, flags, [True] * len(xs)), [True] * len(xs)
        inner, dims = size, a["dims"]
        taken = {s for s, _ in (*dims, *a["sized"])}
        if symbols_of(size) & taken:  # the batch size has the name of one of the callee's sizes
            inner = symbol(functions.fresh_symbol("S"))
            dims = (*dims, (str(inner), size))
        wrt = [i for i, f in enumerate(flags) if f]
        varying = tuple((s, i) for s, i in a["sized"] if flags[i])
        name = functions.derived(a["callee"], "batch", wrt, size=inner, varying=varying)
        rules = tuple(
            (kind, *[functions.derived(r, "batch", range(len(functions.function(r).args)), size=inner) for r in names])
            for kind, *names in a["rules"]
        )
        longest = [self.longest(xs[i]) for _, i in varying]
        sized = [
            *[(s, i) for s, i in a["sized"] if not flags[i]],
            *[(s, len(xs) + k) for k, (s, _) in enumerate(varying)],
        ]
        types = tuple(batched_type(r.type, size) for r in op.results)
        out = self.b.emit("call", *xs, *longest, callee=name, results=types, dims=dims, sized=tuple(sized), rules=rules,
                          loc=op.loc)  # fmt: skip
        return out, [True] * len(out)

    def longest(self, counts: Value) -> Value:
        return self.b.maximum(self.b.max(counts, axes=(0,)), self.b.index(0))  # type: ignore[no-any-return]

    def op_assert(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        return self.b.clone(op, [self.b.all(xs[0], axes=(0,))]), []

    def op_fused(self, op: Op, xs: Sequence[Value], flags: Flags) -> tuple[Sequence[Value], Sequence[bool]]:
        return self.run(op.blocks[0], xs, flags)


# ---- sizes that are the value of an argument ----------------------------------------------------------------------------------


def _length_symbol(op: Op) -> str:
    """The symbol that a scan runs for, or that a `dim` reads; "" for any other size and op."""
    d = scan_length(op.attrs, op.operands) if op.name == "scan" else op.attrs["value"] if op.name == "dim" else 0
    return str(d) if isinstance(d, Poly) and str(d).isidentifier() else ""


def _maskable(cx: Context, block: Block, names: set[str]) -> bool:
    """Whether lanes of different lengths can share the block: the sizes `names` are lengths of scans, and whatever else has
    such an axis keeps its places apart, so that what lies beyond a lane's length reaches nothing."""
    return all(_keeps_apart(cx, op, names) for op in block.ops)


def _keeps_apart(cx: Context, op: Op, names: set[str]) -> bool:
    if any(_mentions(cx, k, names) for k in op.blocks):
        return False
    if not _of_op(cx, op) & names:
        return True
    if op.name in ("scan", "dim"):
        d = scan_length(op.attrs, op.operands) if op.name == "scan" else op.attrs["value"]
        return not symbols_of(d) & names or _length_symbol(op) in names
    return is_elementwise(op) or op.name in ("broadcast", "transpose", "iota", "stop_gradient")


def _mentions(cx: Context, block: Block, names: set[str]) -> bool:
    seen = {s for a in block.args for d in getattr(a.type, "shape", ()) for s in symbols_of(d)}
    return bool(seen & names) or any(_of_op(cx, op) & names for op in block.walk())


def _of_op(cx: Context, op: Op) -> set[str]:
    """The size symbols that occur in an op's types and attributes, and in the functions that it calls."""
    found: set[str] = set()
    todo = [op.attrs["callee"]] if op.attrs.get("callee") else []
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            f = cx.functions.function(name)
            found.update(f.symbols)
            todo += [o.attrs["callee"] for o in f.walk() if o.attrs.get("callee")]
    found -= {s for key in ("dims", "sized") for s, _ in op.attrs.get(key, ())}
    flat = Func("", Block((), [Op(op.defn, op.operands, op.attrs, (), None, [r.type for r in op.results])], ()))
    types = {s for v in op.operands for d in getattr(v.type, "shape", ()) for s in symbols_of(d)}
    return found | set(flat.symbols) | types


def _calls_one_by_one(
    b: Builder, func: Func, xs: Sequence[Value], flags: Flags, size: Dim, varying: Varying
) -> Sequence[Value]:
    """A call for each lane, with its own sizes."""
    inner = Builder(func.loc)
    args = [Value(a.type, None, i) for i, a in enumerate(func.args)]
    types = tuple(v.type for v in func.outs)
    inner.emit("call", *args, callee=func.name, results=types, sized=tuple(varying), loc=func.loc)
    return list(one_by_one(b, inner.ops[0], xs, flags, size))


__all__ = ["Lanes", "batch_block", "batched_results", "batched_type"]
