"""Forward mode: every op followed by the tangents of its results, in one block (dual numbers, source to source).

A tangent that is zero everywhere is not computed (None). Control flow maps to itself with tangents beside the values. An op
without a forward rule of its own gets it from its reverse rule, which is linear in the cotangent: the transpose of that
linear map is the forward derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fluxir.errors import error
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Op, Value
from fluxir.ops.adjoint import add, is_float, linear_jvp, zeros
from fluxir.ops.control import scan_length
from fluxir.passes.linearity import require_linear
from fluxir.passes.reverse import Context, Cotangents, Tape, loop_flags, moving_results

Tangent = Value | None


class Dual:
    """Emits a block's ops and their tangents into builder `b`."""

    def __init__(self, cx: Context, b: Builder) -> None:
        self.cx, self.b = cx, b

    def run(
        self, block: Block, args: Sequence[Value], tangents: Sequence[Tangent]
    ) -> tuple[list[Value], list[Tangent]]:
        env = dict(zip(block.args, args, strict=True))
        t: dict[Value, Value] = {a: d for a, d in zip(args, tangents, strict=True) if d is not None}
        for op in block.ops:
            operands = [env.get(v, v) for v in op.operands]
            self.b.loc = op.loc
            given = [t.get(v) for v in operands]
            moving = any(d is not None for d in given) and not op.defn.constant
            if not moving or not any(is_float(r) for r in op.results):
                env.update(zip(op.results, self.b.clone(op, operands), strict=True))
                continue
            results, moved = DUAL.get(op.name, _ordinary)(self, op, operands, given)
            env.update(zip(op.results, results, strict=True))
            t.update((r, d) for r, d in zip(results, moved, strict=True) if d is not None)
        outs = [env.get(v, v) for v in block.outs]
        return outs, [t.get(v) for v in outs]


def jvp_block(
    cx: Context,
    b: Builder,
    block: Block,
    args: Sequence[Value],
    wrt: Sequence[int],
    given: Sequence[Value],
    of: Sequence[int],
) -> tuple[list[Value], list[Value]]:
    """Emit into `b` the results of `block` on `args`, and the tangents of the results `of` for tangents `given` of `wrt`."""
    place = dict(zip(wrt, given, strict=True))
    outs, tangents = Dual(cx, b).run(block, args, [place.get(i) for i in range(len(args))])
    return outs, [_whole(b, tangents[j], outs[j]) for j in of]


def _whole(b: Builder, t: Tangent, like: Value) -> Value:
    return zeros(b, like.type) if t is None else t


def _ordinary(
    dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent]
) -> tuple[Sequence[Value], list[Tangent]]:
    results = dual.b.clone(op, operands)
    made = dual.b.ops[-1]
    if made.defn.jvp is not None:
        return results, list(made.defn.jvp(dual.b, made, tangents))
    if made.defn.linear:
        return results, linear_jvp(dual.b, made, tangents)
    if made.defn.vjp is not None:
        return results, transposed(dual.cx, dual.b, made, tangents)
    raise error(
        "FX0411",
        f"{op.name} has no derivative",
        loc=op.loc,
        help="give one with fx.custom_jvp, or keep the gradient out with fx.stop_gradient",
    )


def transposed(cx: Context, b: Builder, op: Op, tangents: Sequence[Tangent]) -> list[Tangent]:
    """Tangents of an op's results from its `vjp` rule, which is linear in the cotangent: pull the tangents of the operands
    back through it."""

    def pull(k: Builder, cts: Sequence[Value]) -> list[Tangent]:
        places = iter(cts)
        assert op.defn.vjp is not None
        parts = op.defn.vjp(k, op, [next(places) if is_float(r) else None for r in op.results])
        gathered = Cotangents()
        out: list[Tangent] = []
        for i, (v, part) in enumerate(zip(op.operands, parts, strict=True)):
            if tangents[i] is None or part is None:
                out.append(None)
                continue
            gathered.parts.clear()
            gathered.add(v, part)
            out.append(gathered.take(k, v))
        return out

    return transpose(cx, b, [r for r in op.results if is_float(r)], pull, tangents, op.results)


def transpose(
    cx: Context,
    b: Builder,
    floats: Sequence[Value],
    pull: Callable[[Builder, Sequence[Value]], Sequence[Tangent]],
    tangents: Sequence[Tangent],
    results: Sequence[Value],
) -> list[Tangent]:
    """Apply the transpose of the linear map `pull` (cotangents of `floats` -> cotangents of operands) to `tangents`."""
    inner = Builder(b.loc)
    points = [Value(r.type, None, i) for i, r in enumerate(floats)]
    outs = pull(inner, points)
    tape = Tape(cx, b, [])
    starts = [zeros(b, r.type) for r in floats]  # the map is linear: its derivative is the same everywhere
    # Each start must be a value of its own, so that cotangents are not mixed up.
    starts = [b.emit("stop_gradient", s)[0] for s in starts]
    tape.active.update(starts)
    yielded = [(v, t) for v, t in zip(outs, tangents, strict=True) if v is not None and t is not None]
    values = tape.forward(Block(points, inner.ops, [v for v, _ in yielded]), starts)
    cts = Cotangents()
    for v, (_, t) in zip(values, yielded, strict=True):
        if v in tape.active:
            cts.add(v, t)
    tape.backward(b, cts)
    found = dict(zip(floats, [cts.take(b, s) for s in starts], strict=True))
    return [found.get(r) for r in results]


# ---- control flow -----------------------------------------------------------------------------------------------------------


def _indices(flags: Sequence[bool]) -> list[int]:
    return [i for i, f in enumerate(flags) if f]


def _spread(values: Sequence[Value], where: Sequence[int], count: int) -> list[Tangent]:
    out: list[Tangent] = [None] * count
    for i, v in zip(where, values, strict=True):
        out[i] = v
    return out


def _if(dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent]) -> tuple[Sequence[Value], list[Tangent]]:
    p, *xs = operands
    flags = [t is not None for t in tangents[1:]]
    moving = [i for i, t in enumerate(tangents[1:]) if t is not None]
    of = _indices([any(f) for f in zip(*[moving_results(k, flags) for k in op.blocks], strict=True)])
    given = [t for t in tangents[1:] if t is not None]

    def side(block: Block) -> Block:
        def body(k: Builder, *args: Value) -> list[Value]:
            outs, ts = jvp_block(dual.cx, k, block, args[: len(xs)], moving, args[len(xs) :], of)
            return [*outs, *ts]

        return dual.b.block([v.type for v in (*xs, *given)], body)

    out = dual.b.emit("if", p, *xs, *given, blocks=[side(k) for k in op.blocks], loc=op.loc)
    n = len(op.results)
    return out[:n], _spread(out[n:], of, n)


def _scan(dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent]) -> tuple[Sequence[Value], list[Tangent]]:
    nc, nk, (body,) = op.attrs["carry"], op.attrs["consts"], op.blocks
    b = dual.b
    flags = loop_flags(body, nc, [t is not None for t in tangents])
    moving = _indices(flags)
    groups = [[i for i in moving if lo <= i < hi] for lo, hi in ((0, nc), (nc, nc + nk), (nc + nk, len(operands)))]
    given = [[_whole(b, tangents[i], operands[i]) for i in g] for g in groups]
    ys = [j for j in _indices(moving_results(body, flags)) if j >= nc]
    length = scan_length(op.attrs, operands)
    bounds = [0, nc, nc + nk, len(operands)]
    mixed = [v for k in range(3) for v in (*operands[bounds[k] : bounds[k + 1]], *given[k])]

    def step(k: Builder, *args: Value) -> list[Value]:
        plain: list[Value] = []
        moved: list[Value] = []
        at = 0
        for part in range(3):
            n = bounds[part + 1] - bounds[part]
            plain += args[at : at + n]
            moved += args[at + n : at + n + len(groups[part])]
            at += n + len(groups[part])
        outs, ts = jvp_block(dual.cx, k, body, plain, moving, moved, [*groups[0], *ys])
        c = len(groups[0])
        return [*outs[:nc], *ts[:c], *outs[nc:], *ts[c:]]

    sliced = nc + nk + len(groups[0]) + len(groups[1])
    types = [v.type if i < sliced else v.type.with_shape(v.shape[1:]) for i, v in enumerate(mixed)]  # type: ignore[union-attr]
    out = b.emit(
        "scan",
        *mixed,
        blocks=[b.block(types, step)],
        carry=nc + len(groups[0]),
        consts=nk + len(groups[1]),
        reverse=op.attrs["reverse"],
        length=length,
        loc=op.loc,
    )
    c, n = len(groups[0]), len(op.results)
    results = [*out[:nc], *out[nc + c : n + c]]
    return results, _spread([*out[nc : nc + c], *out[n + c :]], [*groups[0], *ys], n)


def _while(dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent]) -> tuple[Sequence[Value], list[Tangent]]:
    nc, (cond, body) = op.attrs["carry"], op.blocks
    b = dual.b
    flags = loop_flags(body, nc, [t is not None for t in tangents])
    moving = _indices(flags)
    carries = [i for i in moving if i < nc]
    consts = [i for i in moving if i >= nc]
    d_carry = [_whole(b, tangents[i], operands[i]) for i in carries]
    d_const = [_whole(b, tangents[i], operands[i]) for i in consts]
    c = nc + len(carries)
    mixed = [*operands[:nc], *d_carry, *operands[nc:], *d_const]
    m = len(operands) - nc

    def test(k: Builder, *args: Value) -> list[Value]:
        return Dual(dual.cx, k).run(cond, [*args[:nc], *args[c : c + m]], [None] * len(operands))[0]

    def step(k: Builder, *args: Value) -> list[Value]:
        plain, moved = [*args[:nc], *args[c : c + m]], [*args[nc:c], *args[c + m :]]
        outs, ts = jvp_block(dual.cx, k, body, plain, moving, moved, carries)
        return [*outs, *ts]

    types = [v.type for v in mixed]
    out = b.emit("while", *mixed, blocks=[b.block(types, test), b.block(types, step)], carry=c, loc=op.loc)
    return out[:nc], _spread(out[nc:], carries, nc)


def _call(dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent]) -> tuple[Sequence[Value], list[Tangent]]:
    rules = {kind: names for kind, *names in op.attrs["rules"]}
    if rules:
        return _by_rule(dual, op, operands, tangents, rules)
    wrt = [i for i, t in enumerate(tangents) if t is not None]
    of = [j for j, r in enumerate(op.results) if is_float(r)]
    name = dual.cx.functions.derived(op.attrs["callee"], "jvp", wrt, of)
    types = [*op.attrs["results"], *[op.results[j].type for j in of]]
    attrs = {k: v for k, v in op.attrs.items() if k in ("dims", "sized")}
    given = [t for t in tangents if t is not None]
    out = dual.b.emit("call", *operands, *given, callee=name, results=tuple(types), loc=op.loc, **attrs)
    n = len(op.results)
    return out[:n], _spread(out[n:], of, n)


def _by_rule(
    dual: Dual, op: Op, operands: list[Value], tangents: list[Tangent], rules: Mapping[str, Sequence[str]]
) -> tuple[Sequence[Value], list[Tangent]]:
    """A call whose derivative the user gave: the forward rule, or the transpose of the backward one."""
    b = dual.b
    n = len(op.results)
    of = [j for j, r in enumerate(op.results) if is_float(r)]
    floats = [i for i, v in enumerate(operands) if is_float(v)]
    moved = [_whole(b, tangents[i], operands[i]) for i in floats]
    types = tuple(op.attrs["results"])
    moving = tuple(types[j] for j in of)
    if "jvp" in rules:
        (rule,) = rules["jvp"]
        out = b.emit("call", *operands, *moved, callee=rule, results=(*types, *moving), loc=op.loc)
        return out[:n], _spread(out[n:], of, n)
    kept = len(dual.cx.functions.function(rules["vjp"][0]).outs) - n
    require_linear(
        dual.cx.functions, op, rules["vjp"][1], range(kept, kept + n), "cotangent",
        "give a rule for forward mode beside it with its defjvp, or differentiate in reverse mode (fx.grad of fx.grad)",
    )  # fmt: skip
    results = b.clone(op, operands, rules=())
    name = _pulled(dual, op, rules["vjp"])
    starts = [zeros(b, r.type) for r in results]
    places = [len(operands) + j for j in of]
    derived = dual.cx.functions.derived(name, "pullback", places, range(len(floats)))
    ts = b.emit("call", *operands, *starts, *moved, callee=derived, results=moving, loc=op.loc)
    return results, _spread(ts, of, n)


def _pulled(dual: Dual, op: Op, names: Sequence[str]) -> str:
    """(arguments..., cotangents of all results...) -> cotangents of the float arguments: forward and backward rule in one."""
    fwd, bwd = names
    functions = dual.cx.functions
    f = functions.function(fwd)
    n = len(op.results)

    def body(b: Builder, *values: Value) -> Sequence[Value]:
        args = values[: len(f.args)]
        kept = b.emit("call", *args, callee=fwd, results=tuple(v.type for v in f.outs))[n:]
        types = tuple(v.type for v in functions.function(bwd).outs)
        return b.emit("call", *kept, *values[len(f.args) :], callee=bwd, results=types)

    types = [*[a.type for a in f.args], *[v.type for v in f.outs[:n]]]
    return functions.add(f"{fwd}_{bwd}", Builder(op.loc).block(types, body))


DUAL: Mapping[str, Callable[[Dual, Op, list[Value], list[Tangent]], tuple[Sequence[Value], list[Tangent]]]] = {
    "if": _if,
    "scan": _scan,
    "while": _while,
    "call": _call,
}

__all__ = ["Context", "Dual", "add", "jvp_block", "transpose"]
