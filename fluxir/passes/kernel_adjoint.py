"""The reverse derivative of a GPU kernel: another kernel, where it is provably right; else a reason why not.

A thread of the adjoint kernel computes anew what its thread computed, without writing, and goes back over it. A load of x[i]
adds to dx[i]; a store of y[i] takes dy[i] and leaves zero there, for what was in y[i] before no longer matters. That is right if

- every element is stored at most once in a launch (`kernel_places`), and read, if at all, before that by its own thread: so
  what a thread computes depends on what the kernel was given, and on nothing another thread wrote;
- nothing meets: no barriers, shuffles, atomics, shared or local arrays;
- loops are `for` loops whose reverse does not need the value that a loop carries in the middle (sums are fine).

Sums into dx go through atomics where threads may meet in one element, and are plain where they cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fluxir.errors import FluxError, error
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import MemType, TensorType
from fluxir.ops.adjoint import is_float, zeros
from fluxir.passes.kernel_places import Places
from fluxir.passes.reverse import Context, Cotangents, Functions, Tape

__all__ = ["AdjointKernel", "adjoint_kernel", "pull_kernel"]

_REGIONS = ("if", "for")


@dataclass(frozen=True)
class AdjointKernel:
    """`func` takes the kernel's arguments, then the derivative arrays: of the written arguments `writes` (cotangents going in,
    those of the arguments coming out), then of the read ones `reads` (to which it adds)."""

    func: Func
    writes: tuple[int, ...]
    reads: tuple[int, ...]


@dataclass(frozen=True)
class _Round:
    """The adjoint of a round: its block, the outer values whose cotangents it sums up, and whether what the loop carries are
    sums, so that the rounds may go in any order."""

    block: Block
    leaving: list[Value]
    sums: bool


@dataclass
class _Access:
    op: Op
    memory: Value
    index: tuple[Value, ...]
    loops: tuple[Value, ...]  # indices of the loops around it
    path: tuple[tuple[Op, int], ...]  # the branches it stands in
    order: int


@dataclass
class _Found:
    """What a kernel does with its arguments."""

    loads: list[_Access] = field(default_factory=list)
    stores: list[_Access] = field(default_factory=list)


def adjoint_kernel(
    cx: Context, f: Func, writes: Sequence[int], wrt: Sequence[int], grid: Sequence[Dim], block: Sequence[int]
) -> AdjointKernel:
    """The adjoint of kernel `f`, launched so, for the float arguments `wrt`. FX0416 with the reason where there is none."""
    places = Places(f, grid, block)
    found = _look(f)
    position = {a: i for i, a in enumerate(f.args)}
    _check(f, found, places, position, writes)
    kept = tuple(i for i in writes if f.args[i].type.dtype.is_float)
    reads = tuple(i for i in wrt if i not in writes)
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(f.args)]
    grads = {
        f.args[i]: Value(f.args[i].type, None, len(args) + n, f"d_{f.args[i].name or i}")
        for n, i in enumerate([*kept, *reads])
    }
    b = Builder(f.loc)
    alone = {a.op: all(_meet_nobody(places, a, o) for o in found.loads if o.memory is a.memory) for a in found.loads}
    stored = {a.memory for a in found.stores}
    _Reverse(cx, f, b, grads, alone, stored).run(f.block, dict(zip(f.args, args, strict=True)))
    body = Block([*args, *grads.values()], _needed(b.ops, ()), ())
    func = Func(f"{f.name}_adjoint", body, "kernel", Attrs({"grid": (), "block": ()}), (), f.loc)
    return AdjointKernel(func, kept, reads)


def _refuse(f: Func, reason: str, op: Op | None) -> FluxError:
    return error(
        "FX0416",
        f"the kernel {f.name} has no derivative of its own: {reason}",
        loc=op.loc if op is not None and op.loc is not None else f.loc,
        help="give it one with fx.custom_vjp, or keep the gradient out with fx.stop_gradient",
    )


# ---- looking ------------------------------------------------------------------------------------------------------------


def _look(f: Func) -> _Found:
    """All accesses of a kernel, in order. FX0416 for what the adjoint of a kernel cannot have."""
    found = _Found()
    count = 0

    def walk(block: Block, loops: tuple[Value, ...], path: tuple[tuple[Op, int], ...]) -> None:
        nonlocal count
        for op in block.ops:
            count += 1
            if op.name == "load":
                if op.attrs.lanes:
                    raise _refuse(f, "it loads vectors", op)
                found.loads.append(_Access(op, op.operands[0], tuple(op.operands[1:]), loops, path, count))
            elif op.name == "store":
                if not isinstance(op.operands[1].type, TensorType):
                    raise _refuse(f, "it stores vectors", op)
                found.stores.append(_Access(op, op.operands[0], tuple(op.operands[2:]), loops, path, count))
            elif op.name == "if":
                for i, k in enumerate(op.blocks):
                    walk(k, loops, (*path, (op, i)))
            elif op.name == "for":
                walk(op.blocks[0], (*loops, op.blocks[0].args[0]), path)
            elif op.blocks:
                raise _refuse(f, f"it has a `{op.name}` loop, whose reverse would need every round's values", op)
            elif op.defn.category == "gpu" and op.name not in _INDICES and op.name not in _WORDS:
                raise _refuse(f, f"its threads exchange values ({op.name})", op)
            elif op.defn.effects or any(isinstance(r.type, MemType) for r in op.results):
                raise _refuse(f, f"{_WORDS.get(op.name, f'it uses {op.name}')}", op)

    walk(f.block, (), ())
    return found


_INDICES = ("thread_id", "block_id", "block_dim", "grid_dim", "lane_id")
_WORDS = {
    "alloc": "it has shared or local arrays",
    "dynamic_shared": "it has shared arrays",
    "barrier": "its threads wait for each other",
    "atomic_rmw": "it uses atomics",
    "atomic_cas": "it uses atomics",
    "subview": "it takes parts of arrays",
}


def _check(f: Func, found: _Found, places: Places, position: dict[Value, int], writes: Sequence[int]) -> None:
    for a in (*found.loads, *found.stores):
        if a.memory not in position:
            raise _refuse(f, "it reaches an array that is no argument", a.op)
    by_memory: dict[Value, list[_Access]] = {}
    for s in found.stores:
        others = by_memory.setdefault(s.memory, [])
        name = s.memory.name or str(position[s.memory])
        if not places.distinct(s.index, s.loops):
            raise _refuse(f, f"it is not plain that every element of {name} is stored by one thread only, once", s.op)
        for o in others:
            if not places.apart(o.index, s.index) and not (_exclusive(o, s) and places.same(o.index, s.index)):
                raise _refuse(f, f"{name} may be stored twice at one place", s.op)
        others.append(s)
    for r in found.loads:
        for s in by_memory.get(r.memory, []):
            name = s.memory.name or str(position[s.memory])
            if not places.same(r.index, s.index):
                if len(by_memory[r.memory]) > 1 and places.apart(r.index, s.index):
                    continue
                raise _refuse(f, f"it reads {name} at other places than it writes", r.op)
            if r.order > s.order and not _exclusive(r, s):
                raise _refuse(f, f"it reads {name} after writing to it", r.op)
            if r.loops != s.loops:
                raise _refuse(f, f"it reads and writes {name} in different loops", r.op)


def _meet_nobody(places: Places, a: _Access, b: _Access) -> bool:
    """Whether no other thread or round reaches by `b` an element that one reaches by `a`."""
    if not places.distinct(a.index, a.loops):
        return False
    return a is b or (a.loops == b.loops and (places.same(a.index, b.index) or places.apart(a.index, b.index)))


def _exclusive(a: _Access, b: _Access) -> bool:
    """Whether the two stand in different branches of one `if`."""
    there = dict(b.path)
    return any(op in there and there[op] != side for op, side in a.path)


# ---- going back ---------------------------------------------------------------------------------------------------------


class _Reverse(Tape):
    """Emits a region's adjoint: its values again, then what goes back. Regions are open, so inner ones see outer values; the
    cotangents of these leave them as results."""

    def __init__(
        self, cx: Context, f: Func, b: Builder, grads: dict[Value, Value], alone: dict[Op, bool], stored: set[Value]
    ) -> None:
        super().__init__(cx, b, ())
        self.f, self.grads, self.alone, self.stored = f, grads, alone, stored
        self.loaded: dict[tuple[Value, ...], Value] = {}  # elements of arrays that nobody stores to
        self.back: list[Callable[[Builder, Cotangents], None]] = []

    def inner(self, b: Builder) -> _Reverse:
        found = _Reverse(self.cx, self.f, b, self.grads, self.alone, self.stored)
        found.active, found.loaded = set(self.active), dict(self.loaded)
        return found

    def run(self, block: Block, env: dict[Value, Value], cts: Cotangents | None = None) -> None:
        self.emit(block, env)
        self.go_back(cts or Cotangents())

    def record(self, results: Sequence[Value], pull: Callable[[Builder, Cotangents], None]) -> None:
        floats = [r for r in results if is_float(r)]
        self.active.update(floats)

        def when_reached(b: Builder, cts: Cotangents) -> None:
            if any(r in cts for r in floats):
                pull(b, cts)

        self.back.append(when_reached)

    def go_back(self, cts: Cotangents) -> None:
        for pull in reversed(self.back):
            pull(self.b, cts)

    # ---- values again
    def emit(self, block: Block, env: dict[Value, Value]) -> list[Value]:
        for op in block.ops:
            self.b.loc = op.loc
            operands = [env.get(v, v) for v in op.operands]
            if op.name == "load":
                env[op.result] = self._load(op, operands)
            elif op.name == "store":
                self._store(op, operands)
            elif op.name in _REGIONS:
                env.update(zip(op.results, getattr(self, "_" + op.name)(op, operands, env), strict=True))
            elif any(v in self.active for v in operands) and any(map(is_float, op.results)) and not op.defn.constant:
                env.update(zip(op.results, self._ordinary(op, operands), strict=True))
            else:
                env.update(zip(op.results, self.b.clone(op, operands), strict=True))
        return [env.get(v, v) for v in block.outs]

    def _ordinary(self, op: Op, operands: list[Value]) -> Sequence[Value]:
        results = self.b.clone(op, operands)
        made = self.b.ops[-1]
        if op.defn.vjp is None:
            raise _refuse(self.f, f"{op.name} has no reverse derivative", op)

        def pull(b: Builder, cts: Cotangents) -> None:
            assert made.defn.vjp is not None
            parts = made.defn.vjp(b, made, [cts.take(b, r) for r in made.results])
            for v, part in zip(made.operands, parts, strict=True):
                if v in self.active:
                    cts.add(v, part)

        self.record(results, pull)
        return results

    def _load(self, op: Op, operands: list[Value]) -> Value:
        """One load for all of an element that does not change: then its derivative is added to once."""
        key = tuple(operands)
        if key in self.loaded:
            return self.loaded[key]
        (result,) = self.b.clone(op, operands)
        if op.operands[0] not in self.stored:
            self.loaded[key] = result
        grad = self.grads.get(op.operands[0])
        if grad is None:
            return result
        index, alone = operands[1:], self.alone[op]

        def pull(b: Builder, cts: Cotangents) -> None:
            part = cts.take(b, result)
            if alone:
                b.emit("store", grad, b.add(b.emit("load", grad, *index)[0], part), *index)
            else:
                b.emit("atomic_rmw", grad, part, *index, op="add")

        self.record([result], pull)
        return result

    def _store(self, op: Op, operands: list[Value]) -> None:
        """No forward meaning: the result is not looked at."""
        grad = self.grads.get(op.operands[0])
        if grad is None:
            return
        value, index = operands[1], operands[2:]

        def pull(b: Builder, cts: Cotangents) -> None:
            part = b.emit("load", grad, *index)[0]
            b.emit("store", grad, zeros(b, value.type), *index)
            if value in self.active:
                cts.add(value, part)

        self.back.append(pull)

    # ---- regions
    def _values(self, block: Block, env: dict[Value, Value], args: Sequence[Value] = ()) -> Block:
        """The block again, without its stores."""
        b = Builder()
        values = _Values(b)
        mine = {**env, **dict(zip(block.args, args, strict=True))}
        outs = values.emit(block, mine)
        return Block(args, b.ops, outs)

    def _if(self, op: Op, operands: list[Value], env: dict[Value, Value]) -> Sequence[Value]:
        outer = dict(env)
        results = self.b.clone(op, operands, [self._values(k, outer) for k in op.blocks])
        self.active.update(r for r in results if is_float(r))

        def pull(b: Builder, cts: Cotangents) -> None:
            given = [cts.take(b, r) if is_float(r) else None for r in results]
            sides: list[tuple[Builder, Cotangents, set[Value]]] = []
            for k in op.blocks:
                inner, own = Builder(op.loc), Cotangents()
                side = self.inner(inner)
                for v, ct in zip(side.emit(k, dict(outer)), given, strict=True):
                    own.add(v, ct)
                side.go_back(own)
                sides.append((inner, own, {r for o in inner.ops for r in o.results}))
            leaving = list(
                dict.fromkeys(v for _, own, made in sides for v in own.parts if v not in made and v in self.active)
            )
            if not leaving and not any(_writes(o) for inner, _, _ in sides for o in inner.ops):
                return
            blocks = [Block((), inner.ops, _wholes(inner, own, leaving)) for inner, own, _ in sides]
            for v, ct in zip(leaving, b.emit("if", operands[0], blocks=blocks, loc=op.loc), strict=True):
                cts.add(v, ct)

        self.back.append(pull)
        return results

    def _for(self, op: Op, operands: list[Value], env: dict[Value, Value]) -> Sequence[Value]:
        outer = dict(env)
        body = op.blocks[0]
        fresh = [Value(a.type, None, i, a.name) for i, a in enumerate(body.args)]
        results = self.b.clone(op, operands, [self._values(body, outer, fresh)])
        lo, hi, step, *starts = operands
        floats = [i for i, v in enumerate(starts) if is_float(v)]
        self.active.update(results[i] for i in floats)

        def pull(b: Builder, cts: Cotangents) -> None:
            given = [cts.whole(b, results[i]) for i in floats]
            made = self._round(op, outer, floats, None)
            bounds = (lo, hi, step)
            if not made.sums:  # the order matters: from the last round, last - count * step, to the first
                rounds = b.div(b.add(b.sub(hi, lo), b.sub(step, b.index(1))), step)
                last = b.add(lo, b.mul(b.sub(rounds, b.index(1)), step))
                made = self._round(op, outer, floats, (last, step))
                bounds = (b.index(0), b.maximum(rounds, b.index(0)), b.index(1))
            start = [*given, *[zeros(b, v.type) for v in made.leaving]]
            found = b.emit("for", *bounds, *start, blocks=[made.block], vectorize=False, loc=op.loc)
            for n, k in enumerate(floats):
                cts.add(starts[k], found[n])
            for v, ct in zip(made.leaving, found[len(floats) :], strict=True):
                cts.add(v, ct)

        self.back.append(pull)
        return results

    def _round(
        self, op: Op, outer: dict[Value, Value], floats: Sequence[int], backwards: tuple[Value, Value] | None
    ) -> _Round:
        """The adjoint of one round of a loop: it takes the cotangents of what the loop carries and the totals of what it sees
        from outside, and yields them. `backwards`: (the last index, the step) where the rounds go from last to first."""
        body = op.blocks[0]
        inner = Builder(op.loc)
        count = Value(body.args[0].type, None, 0, body.args[0].name)
        i = inner.sub(backwards[0], inner.mul(count, backwards[1])) if backwards else count
        unknown = [Value(a.type, None, 0, a.name) for a in body.args[1:]]  # what the loop carries in the middle
        moving = [Value(unknown[k].type, None, 0, "") for k in floats]
        side, own = self.inner(inner), Cotangents()
        side.active.update(v for v in unknown if is_float(v))
        outs = side.emit(body, {**outer, **dict(zip(body.args, [i, *unknown], strict=True))})
        for n, k in enumerate(floats):
            own.add(outs[k], moving[n])
        side.go_back(own)
        made = {count, *moving, *unknown, *(r for o in inner.ops for r in o.results)}
        leaving = [v for v in own.parts if v not in made and v in self.active]
        totals = [Value(v.type, None, 0, "") for v in leaving]
        before = _wholes(inner, own, [unknown[k] for k in floats])
        sums = [inner.add(t, x) for t, x in zip(totals, _wholes(inner, own, leaving), strict=True)]
        yielded = [*before, *sums]
        ops = _needed(inner.ops, yielded)
        self._known(op, ops, yielded, unknown)
        args = [count, *moving, *totals]
        for n, v in enumerate(args):
            v.index = n
        return _Round(Block(args, ops, yielded), leaving, all(x is m for x, m in zip(before, moving, strict=True)))

    def _known(self, op: Op, ops: Sequence[Op], outs: Sequence[Value], unknown: Sequence[Value]) -> None:
        """FX0416 where the reverse of a round needs what the loop carries at that time."""
        used = {v for o in ops for x in (o, *_inside(o)) for v in x.operands} | set(outs)
        for v in unknown:
            if v in used:
                name = f" ({v.name})" if v.name else ""
                raise _refuse(self.f, f"the reverse of this loop needs the value it carries{name} in every round", op)


class _Values(_Reverse):
    """The values of a region alone: loads and arithmetic, no stores, nothing to go back over."""

    def __init__(self, b: Builder) -> None:
        Tape.__init__(self, None, b, ())  # type: ignore[arg-type]
        self.grads, self.back, self.loaded, self.stored = {}, [], {}, set()

    def _load(self, op: Op, operands: list[Value]) -> Value:
        return self.b.clone(op, operands)[0]

    def _if(self, op: Op, operands: list[Value], env: dict[Value, Value]) -> Sequence[Value]:
        return self.b.clone(op, operands, [self._values(k, dict(env)) for k in op.blocks])

    def _for(self, op: Op, operands: list[Value], env: dict[Value, Value]) -> Sequence[Value]:
        fresh = [Value(a.type, None, i, a.name) for i, a in enumerate(op.blocks[0].args)]
        return self.b.clone(op, operands, [self._values(op.blocks[0], dict(env), fresh)])


def _wholes(b: Builder, cts: Cotangents, values: Sequence[Value]) -> list[Value]:
    return [cts.whole(b, v) for v in values]


def _inside(op: Op) -> list[Op]:
    return [o for k in op.blocks for o in k.walk()]


def _writes(op: Op) -> bool:
    return any(o.name in ("store", "atomic_rmw") for o in (op, *_inside(op)))


def _needed(ops: Sequence[Op], outs: Sequence[Value]) -> list[Op]:
    """The ops that write, or that `outs` or those need, in order."""
    wanted, kept = set(outs), []
    for op in reversed(ops):
        if any(r in wanted for r in op.results) or _writes(op):
            kept.append(op)
            every = (op, *_inside(op))
            for o in every:
                wanted.update(o.operands)
            wanted.update(v for o in every for k in o.blocks for v in k.outs)
    return kept[::-1]


# ---- in a program ---------------------------------------------------------------------------------------------------------


def pull_kernel(tape: Tape, op: Op, operands: list[Value], flags: list[bool]) -> Sequence[Value]:
    """A `kernel` op in reverse mode: the pull calls the adjoint kernel."""
    functions: Functions = tape.cx.functions
    a = op.attrs
    f = functions.function(a.callee)
    wrt = [i for i, active in enumerate(flags) if active]
    made = adjoint_kernel(tape.cx, f, a.writes, wrt, a.grid, a.block)
    results = tape.b.clone(op, operands)
    place = dict(zip(a.writes, results, strict=True))

    def pull(b: Builder, cts: Cotangents) -> None:
        given = [cts.whole(b, place[i]) for i in made.writes]
        given += [zeros(b, operands[i].type) for i in made.reads]
        n = len(operands)
        callee = functions.add_kernel(made.func)
        grads = b.emit("kernel", *operands, *given, callee=callee, grid=a.grid, block=a.block,
                       writes=tuple(range(n, n + len(given))), loc=op.loc)  # fmt: skip
        for i, g in zip((*made.writes, *made.reads), grads, strict=True):
            if flags[i]:
                cts.add(operands[i], g)

    tape.record(results, pull)
    return results
