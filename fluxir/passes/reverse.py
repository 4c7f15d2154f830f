"""Reverse mode: the forward ops of a block with what its reverse needs, then cotangents from the results back.

Source-to-source on SSA with structured control flow (Innes, "Don't Unroll Adjoint", 2018; regions instead of a control-flow
graph). A `Tape` re-emits a block op by op; each op leaves a *pull*, which turns cotangents of its results into those of its
operands. An ordinary op's pull is its `vjp` rule. An op with regions yields more results in the forward pass (what its
reverse keeps, see `residuals`), and its pull is another op of the same kind: `if` to `if`, `scan` to a `scan` in the other
direction, `while` to a call of a `scan` over as many rounds as it took, `call` to a call of the derived function.
Invariant: everything emitted is ordinary IR, so that any transform applies to the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fluxir.errors import Location, error
from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, symbol
from fluxir.ir.types import INDEX, TensorType, Type
from fluxir.ops.adjoint import Into, is_float, zeros
from fluxir.ops.control import scan_length
from fluxir.passes import residuals
from fluxir.passes.linearity import require_linear

Pull = Callable[[Builder, "Cotangents"], None]


class Functions(Protocol):
    """What differentiating a call needs: the functions of the module, and derived ones by name."""

    def function(self, name: str) -> Func: ...

    def derived(
        self,
        name: str,
        kind: str,
        wrt: Sequence[int],
        of: Sequence[int] = (),
        *,
        size: Dim = 0,
        varying: Sequence[tuple[str, int]] = (),
    ) -> str: ...

    def add(self, base: str, block: Block) -> str: ...

    def add_kernel(self, func: Func) -> str: ...

    def fresh_symbol(self, base: str) -> str: ...


@dataclass(frozen=True)
class Context:
    """`save`: which values the reverse pass keeps, one of `residuals.POLICIES`."""

    functions: Functions
    save: str = "auto"


class Cotangents:
    """The cotangent of each value, as it is gathered: parts to add up, and parts to add in place (`Into`)."""

    def __init__(self) -> None:
        self.parts: dict[Value, list[Any]] = {}

    def add(self, v: Value, part: Any) -> None:
        if part is not None:
            self.parts.setdefault(v, []).append(part)

    def __contains__(self, v: object) -> bool:
        return v in self.parts

    def take(self, b: Builder, v: Value) -> Value | None:
        """The whole cotangent of `v`; None if it is zero. The parts become one."""
        parts = self.parts.get(v)
        if not parts:
            return None
        total: Value | None = None
        for p in parts:
            if not isinstance(p, Into):
                total = p if total is None else b.add(total, p)
        for p in parts:
            if isinstance(p, Into):
                total = p.add(b, zeros(b, v.type) if total is None else total)
        assert total is not None
        if total.type != v.type:
            raise AssertionError(f"the cotangent of {v!r} has the type {total.type}")
        self.parts[v] = [total]
        return total

    def whole(self, b: Builder, v: Value) -> Value:
        found = self.take(b, v)
        return zeros(b, v.type) if found is None else found


class Tape:
    """The forward pass of one block in builder `b`, and the pulls it leaves. `active`: values that depend on what is
    differentiated."""

    def __init__(self, cx: Context, b: Builder, active: Collection[Value]) -> None:
        self.cx, self.b, self.active = cx, b, set(active)
        self.pulls: list[tuple[tuple[Value, ...], Location | None, Pull]] = []

    def forward(self, block: Block, args: Sequence[Value]) -> list[Value]:
        """Emit the block's ops on `args`; returns what it yields."""
        env = dict(zip(block.args, args, strict=True))
        for op in block.ops:
            operands = [env.get(v, v) for v in op.operands]
            self.b.loc = op.loc
            flags = [v in self.active for v in operands]
            if any(flags) and any(is_float(r) for r in op.results) and not op.defn.constant:
                results = FORWARD.get(op.name, _ordinary)(self, op, operands, flags)
            else:
                results = self.b.clone(op, operands)
            env.update(zip(op.results, results, strict=True))
        return [env.get(v, v) for v in block.outs]

    def record(self, results: Sequence[Value], pull: Pull) -> None:
        """Remember how to pull back through ops that made `results`."""
        floats = tuple(r for r in results if is_float(r))
        self.active.update(floats)
        self.pulls.append((floats, self.b.loc, pull))

    def backward(self, b: Builder, cts: Cotangents) -> None:
        """Pull back from the results to everything they came from."""
        for results, loc, pull in reversed(self.pulls):
            if any(r in cts for r in results):
                b.loc = loc
                pull(b, cts)


def vjp_block(
    cx: Context,
    b: Builder,
    block: Block,
    args: Sequence[Value],
    wrt: Sequence[int],
    of: Sequence[int],
    given: Sequence[Value],
) -> tuple[list[Value], list[Value]]:
    """Emit into `b` the results of `block` on `args`, and the cotangents of the arguments `wrt` for cotangents `given` of
    the results `of`."""
    tape = Tape(cx, b, [args[i] for i in wrt])
    outs = tape.forward(block, args)
    cts = Cotangents()
    for j, ct in zip(of, given, strict=True):
        cts.add(outs[j], ct)
    tape.backward(b, cts)
    return outs, [cts.whole(b, args[i]) for i in wrt]


# ---- ordinary ops -------------------------------------------------------------------------------------------------------


def _ordinary(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    results = tape.b.clone(op, operands)
    made = tape.b.ops[-1]
    if op.defn.vjp is None:
        raise error(
            "FX0411",
            f"{op.name} has no reverse derivative",
            loc=op.loc,
            help="give one with fx.custom_vjp, or keep the gradient out with fx.stop_gradient",
        )

    def pull(b: Builder, cts: Cotangents) -> None:
        assert made.defn.vjp is not None
        parts = made.defn.vjp(b, made, [cts.take(b, r) for r in made.results])
        for v, active, part in zip(made.operands, flags, parts, strict=True):
            if active:
                cts.add(v, part)

    tape.record(results, pull)
    return results


# ---- regions --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halves:
    """A region taken apart. `forward` yields its results, then values that are kept; `backward` takes the arguments `reads`,
    what `forward` yields at the places `saved`, cotangents of the results `of`, running totals for the arguments `totals`; it
    yields those of `wrt`."""

    forward: Block
    backward: Block
    reads: tuple[int, ...]
    saved: tuple[int, ...]
    of: tuple[int, ...]


def halves(
    cx: Context,
    block: Block,
    wrt: Sequence[int],
    of: Sequence[int],
    free: Collection[int],
    totals: Collection[int] = (),
    stored: Collection[int] = (),
) -> Halves:
    """Take a region apart. `free`: the arguments the reverse pass can be given for nothing; the cotangents of those in
    `totals` are added to a running total; the results `stored` are there afterwards anyway."""
    fb, bb = Builder(), Builder()
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(block.args)]
    tape = Tape(cx, fb, [args[i] for i in wrt])
    outs = tape.forward(block, args)
    of = [j for j in of if outs[j] in tape.active]
    given = [Value(outs[j].type, None, 0, f"d{outs[j].name}" if outs[j].name else "") for j in of]
    start = {i: Value(args[i].type, None, 0, "") for i in wrt if i in totals}
    cts = Cotangents()
    for i, total in start.items():
        cts.add(args[i], total)
    for j, ct in zip(of, given, strict=True):
        cts.add(outs[j], ct)
    tape.backward(bb, cts)
    grads = [cts.whole(bb, args[i]) for i in wrt]
    known = {*given, *start.values(), *(r for op in bb.ops for r in op.results)}
    needed = dict.fromkeys(v for vs in [*(op.operands for op in bb.ops), grads] for v in vs if v not in known)
    saved, again = residuals.choose(fb.ops, needed, {args[i] for i in free}, cx.save, {outs[j] for j in stored})
    place = {a: i for i, a in enumerate(args) if a not in saved}
    used = {*needed, *(v for op in again for v in op.operands)}
    reads = sorted(place[v] for v in used if v in place)
    env: dict[Value, Value] = {}
    taken: list[Value] = []
    for v in [*[args[i] for i in reads], *saved, *given, *start.values()]:
        env[v] = Value(v.type, None, len(taken), v.name)
        taken.append(env[v])
    back = Builder()
    clone_ops(back, [*again, *bb.ops], env)
    backward = Block(taken, back.ops, [env[v] for v in grads])
    known_at = {outs[j]: j for j in stored}
    extra = [v for v in saved if v not in known_at]
    known_at |= {v: len(outs) + k for k, v in enumerate(extra)}
    forward = Block(args, fb.ops, [*outs, *extra])
    return Halves(forward, backward, tuple(reads), tuple(known_at[v] for v in saved), tuple(of))


def _floats(values: Sequence[Value]) -> list[int]:
    return [i for i, v in enumerate(values) if is_float(v)]


def _if(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    """Both branches keep what they need in shared slots: a kept value of one type shares a slot with one of the other."""
    p, *xs = operands
    wrt, of = [i for i, f in enumerate(flags[1:]) if f], _floats(op.results)
    parts = [halves(tape.cx, k, wrt, of, range(len(xs))) for k in op.blocks]
    slots: list[Type] = []
    places: list[list[int]] = []
    for h in parts:
        taken: list[int] = []
        for t in [v.type for v in h.forward.outs[len(op.results) :]]:
            at = next((i for i, s in enumerate(slots) if s == t and i not in taken), None)
            if at is None:
                at = len(slots)
                slots.append(t)
            taken.append(at)
        places.append(taken)
    n = len(op.results)

    def forward(h: Halves, where: list[int]) -> Block:
        b = Builder()
        args = [Value(a.type, None, i, a.name) for i, a in enumerate(h.forward.args)]
        env = dict(zip(h.forward.args, args, strict=True))
        clone_ops(b, h.forward.ops, env)
        outs = [env.get(v, v) for v in h.forward.outs]
        kept = dict(zip(where, outs[n:], strict=True))
        return Block(args, b.ops, [*outs[:n], *[kept[i] if i in kept else zeros(b, t) for i, t in enumerate(slots)]])

    results = tape.b.emit("if", p, *xs, blocks=[forward(h, w) for h, w in zip(parts, places, strict=True)], loc=op.loc)
    kept = results[n:]

    def pull(b: Builder, cts: Cotangents) -> None:
        given = [cts.whole(b, results[j]) for j in of]
        operands = [*xs, *kept, *given]
        types = [v.type for v in operands]

        def branch(h: Halves, where: list[int]) -> Block:
            def body(k: Builder, *args: Value) -> list[Value]:
                d = dict(zip(of, args[len(xs) + len(kept) :], strict=True))
                needs = [*[args[i] for i in h.reads], *[args[len(xs) + i] for i in where], *[d[j] for j in h.of]]
                env = dict(zip(h.backward.args, needs, strict=True))
                clone_ops(k, h.backward.ops, env)
                return [env[v] for v in h.backward.outs]

            return b.block(types, body)

        grads = b.emit("if", p, *operands, blocks=[branch(h, w) for h, w in zip(parts, places, strict=True)])
        for i, g in zip(wrt, grads, strict=True):
            cts.add(xs[i], g)

    tape.record(results[:n], pull)
    return results[:n]


def moving_results(block: Block, flags: Sequence[bool]) -> list[bool]:
    """Which results of a block depend on the flagged arguments in a way that has a derivative."""
    moving = {a for a, f in zip(block.args, flags, strict=True) if f}
    for op in block.ops:
        if not op.defn.constant and any(v in moving for v in op.operands):
            moving.update(r for r in op.results if is_float(r))
    return [v in moving for v in block.outs]


def loop_flags(body: Block, carry: int, flags: Sequence[bool]) -> list[bool]:
    """Which arguments of a loop body depend on the flagged ones, through any number of rounds."""
    flags = list(flags)
    while True:
        more = [a or b for a, b in zip(flags, moving_results(body, flags)[:carry], strict=False)]
        if more == flags[:carry]:
            return flags
        flags = [*more, *flags[carry:]]


def _scan(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    """The reverse of a scan is a scan in the other direction: its carry are the cotangents of the carry and the totals of
    those of the constants, its sequences what the forward pass kept."""
    nc, nk, (body,) = op.attrs["carry"], op.attrs["consts"], op.blocks
    flags = loop_flags(body, nc, flags)
    carries = [i for i in range(nc) if flags[i]]
    consts = [i for i in range(nc, nc + nk) if flags[i]]
    slices = [i for i in range(nc + nk, len(operands)) if flags[i]]
    stacked = [j for j in range(nc, len(op.results)) if is_float(op.results[j])]
    length: Dim = scan_length(op.attrs, operands)
    wrt = [*carries, *consts, *slices]
    h = halves(tape.cx, body, wrt, [*carries, *stacked], range(nc, len(operands)), consts, range(nc, len(op.results)))
    n = len(op.results)
    attrs = {**op.attrs, "length": length}
    results = tape.b.emit("scan", *operands, blocks=[h.forward], loc=op.loc, **attrs)
    kept = [results[k] for k in h.saved]

    def pull(b: Builder, cts: Cotangents) -> None:
        state = [cts.whole(b, results[i]) for i in carries]
        for i in consts:  # a total goes on from what has been gathered
            state.append(cts.whole(b, operands[i]))
            cts.parts.pop(operands[i], None)
        fixed = [operands[i] for i in h.reads if i < nc + nk]
        sequences = [*[operands[i] for i in h.reads if i >= nc + nk], *kept]
        ys = [j for j in h.of if j >= nc]
        sequences += [cts.whole(b, results[j]) for j in ys]

        def back(k: Builder, *args: Value) -> list[Value]:
            place: dict[Any, Value] = {}
            at = iter(args)
            d_carry = {i: next(at) for i in carries}
            totals = [next(at) for _ in consts]
            place.update({i: next(at) for i in h.reads if i < nc + nk})
            place.update({i: next(at) for i in h.reads if i >= nc + nk})
            saved = [next(at) for _ in kept]
            d_ys = {j: next(at) for j in ys}
            d = {**d_carry, **d_ys}
            env = dict(
                zip(
                    h.backward.args, [*[place[i] for i in h.reads], *saved, *[d[j] for j in h.of], *totals], strict=True
                )
            )
            clone_ops(k, h.backward.ops, env)
            return [env[v] for v in h.backward.outs]

        types = [v.type for v in (*state, *fixed)] + [_element(v.type) for v in sequences]
        grads = b.emit(
            "scan",
            *state,
            *fixed,
            *sequences,
            blocks=[b.block(types, back)],
            carry=len(state),
            consts=len(fixed),
            reverse=not op.attrs["reverse"],
            length=length,
        )
        for i in carries:  # what flows into the loop's start
            cts.add(operands[i], grads[carries.index(i)])
        for k, i in enumerate(consts):
            cts.add(operands[i], grads[len(carries) + k])
        for k, i in enumerate(slices):
            cts.add(operands[i], grads[len(carries) + len(consts) + k])

    tape.record(results[:n], pull)
    return results[:n]


def _element(t: Type) -> TensorType:
    assert isinstance(t, TensorType)
    return TensorType(t.dtype, t.shape[1:])


def _while(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    """The forward pass counts the rounds; the reverse calls the derivative of a scan over as many, a size known at run time."""
    n = op.attrs["carry"]
    cond, body = op.blocks
    b = tape.b
    regions = [_counting(cond, False), _counting(body, True)]
    counted = b.emit("while", b.index(0), *operands, blocks=regions, carry=n + 1, loc=op.loc)
    rounds, results = counted[0], counted[1:]
    flags = loop_flags(body, n, flags)
    wrt = [i for i, f in enumerate(flags) if f]
    of = [i for i in range(n) if flags[i]]
    functions = tape.cx.functions
    size = functions.fresh_symbol("N")
    block = _as_scan(body, n, symbol(size), op.loc)
    name = functions.add("rounds", block)
    derived = functions.derived(name, "pullback", [i + 1 for i in wrt], of)

    def pull(b: Builder, cts: Cotangents) -> None:
        given = [cts.whole(b, results[i]) for i in of]
        grads = b.emit("call", rounds, *operands, *given, callee=derived, results=tuple(operands[i].type for i in wrt),
                       sized=((size, 0),))  # fmt: skip
        for i, g in zip(wrt, grads, strict=True):
            cts.add(operands[i], g)

    tape.record(results, pull)
    return results


def _counting(block: Block, step: bool) -> Block:
    """A region of a `while` with a count of the rounds as its first carry."""
    b = Builder()
    count, *args = [Value(t, None, i) for i, t in enumerate([INDEX, *[a.type for a in block.args]])]
    env = dict(zip(block.args, args, strict=True))
    clone_ops(b, block.ops, env)
    outs = [env.get(v, v) for v in block.outs]
    return Block([count, *args], b.ops, [b.add(count, b.index(1)), *outs] if step else outs)


def _as_scan(body: Block, carry: int, length: Dim, loc: Location | None) -> Block:
    """(rounds, carry..., consts...) -> the carry after `length` rounds of the body of a `while`."""
    args = [Value(t, None, i) for i, t in enumerate([INDEX, *[a.type for a in body.args]])]
    b = Builder(loc)
    outs = b.emit("scan", *args[1:], blocks=[body], carry=carry, consts=len(body.args) - carry, length=length, loc=loc)
    return Block(args, b.ops, outs)


def _call(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    """A call that is kept (recursion, checkpoint, a size known at run time): the reverse calls the derived function, which
    runs the forward pass again."""
    functions = tape.cx.functions
    rules = {kind: names for kind, *names in op.attrs["rules"]}
    if "vjp" in rules:
        return _with_vjp_rule(tape, op, operands, rules["vjp"])
    results = tape.b.clone(op, operands)
    wrt = [i for i, f in enumerate(flags) if f]
    of = _floats(results)
    if "jvp" in rules:
        _with_jvp_rule(tape, op, operands, wrt, results, rules["jvp"])
        return results
    attrs = {k: v for k, v in op.attrs.items() if k in ("dims", "sized")}

    def pull(b: Builder, cts: Cotangents) -> None:
        reached = [j for j in of if results[j] in cts]
        given = [cts.whole(b, results[j]) for j in reached]
        derived = functions.derived(op.attrs["callee"], "pullback", wrt, reached)
        grads = b.emit(
            "call", *operands, *given, callee=derived, results=tuple(operands[i].type for i in wrt), loc=op.loc, **attrs
        )
        for i, g in zip(wrt, grads, strict=True):
            cts.add(operands[i], g)

    tape.record(results, pull)
    return results


def _with_vjp_rule(tape: Tape, op: Op, operands: list[Value], names: Sequence[str]) -> Sequence[Value]:
    """The user's forward function takes the place of the call; the pull calls the backward one."""
    fwd, bwd = names
    types = tuple(v.type for v in tape.cx.functions.function(fwd).outs)
    both = tape.b.emit("call", *operands, callee=fwd, results=types, loc=op.loc)
    n = len(op.results)
    results, kept = both[:n], both[n:]

    def pull(b: Builder, cts: Cotangents) -> None:
        floats = [v for v in operands if is_float(v)]
        given = [cts.whole(b, r) for r in results]
        for v, g in zip(
            floats, b.emit("call", *kept, *given, callee=bwd, results=tuple(v.type for v in floats)), strict=True
        ):
            cts.add(v, g)

    tape.record(results, pull)
    return results


def _with_jvp_rule(
    tape: Tape, op: Op, operands: list[Value], wrt: list[int], results: Sequence[Value], names: Sequence[str]
) -> None:
    """The user's rule is linear in the tangents: the pull is its transpose, the derivative at tangents 0."""
    (rule,) = names
    floats = [v for v in operands if is_float(v)]
    moving = [len(operands) + floats.index(operands[i]) for i in wrt]
    of = _floats(results)
    require_linear(
        tape.cx.functions, op, rule, range(len(operands), len(operands) + len(floats)), "tangent",
        "differentiate in forward mode (fx.jvp), or give the rule with fx.custom_vjp",
    )  # fmt: skip

    def pull(b: Builder, cts: Cotangents) -> None:
        starts = [zeros(b, v.type) for v in floats]
        # Only what has a cotangent: where a derivative is infinite, zero times it would not be zero.
        reached = [k for k, j in enumerate(of) if results[j] in cts]
        given = [cts.whole(b, results[of[k]]) for k in reached]
        derived = tape.cx.functions.derived(rule, "pullback", moving, [len(results) + k for k in reached])
        types = tuple(operands[i].type for i in wrt)
        for i, g in zip(wrt, b.emit("call", *operands, *starts, *given, callee=derived, results=types), strict=True):
            cts.add(operands[i], g)

    tape.record(results, pull)


def _kernel(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    from fluxir.passes.kernel_adjoint import pull_kernel  # which builds on this module

    return pull_kernel(tape, op, operands, flags)


FORWARD: Mapping[str, Callable[[Tape, Op, list[Value], list[bool]], Sequence[Value]]] = {
    "if": _if,
    "scan": _scan,
    "while": _while,
    "call": _call,
    "kernel": _kernel,
}

__all__ = [
    "Context",
    "Cotangents",
    "Functions",
    "Halves",
    "Tape",
    "halves",
    "loop_flags",
    "moving_results",
    "vjp_block",
]
