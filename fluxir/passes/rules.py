"""Rewrite rules as data: what they look for, what they put in its place, where they are written, how to test them.

A *pattern* rule is two functions that build the same value: `rule("mul_one", lambda b, x: b.mul(x, 1), lambda b, x: x)`.
Its left side is read once with a builder that records instead of emitting; the suite runs both sides on random inputs.
A *function* rule (`@rewrite("transpose", sample=...)`) looks at one op and returns its replacement or None; its sample
is a program on which it must fire.

Invariants: a rule is exact: same bits for every input, but for the payload of a NaN. A replacement has the type of what
it replaces, up to broadcasting, which is inserted here. What a rule looked at it may not change.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.build import Builder, as_values
from fluxir.ir.core import Attrs, Block, Func, Op, Value
from fluxir.ir.dtypes import DType
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.rewrite import rewrite_func
from fluxir.ir.types import TensorType
from fluxir.ir.verify import same_type
from fluxir.ops.rules import CLASSES

MAX_ROUNDS = 50


@dataclass(frozen=True)
class Match:
    """An op that a function rule looks at: its operands are already rewritten. `b` collects the replacement."""

    b: Builder
    op: Op
    operands: tuple[Value, ...]
    blocks: tuple[Block, ...]
    uses: Mapping[Value, int]  # how often each value of the function was used when the round began

    @property
    def attrs(self) -> Attrs:
        return self.op.attrs

    @property
    def type(self) -> TensorType:
        """The type of the only result."""
        t = self.op.results[0].type
        assert isinstance(t, TensorType)
        return t

    @property
    def live(self) -> list[bool]:
        """For each result whether anything uses it."""
        return [self.uses.get(r, 0) > 0 for r in self.op.results]

    def only_use(self, i: int) -> bool:
        """Whether this op alone uses what was operand `i`: only then does replacing it by more work not repeat work."""
        return self.uses.get(self.op.operands[i], 0) == 1

    def made_by(self, i: int, name: str) -> Op | None:
        """The op that made operand `i`, if it is a `name`."""
        source = self.operands[i].owner
        return source if source is not None and source.name == name else None


Apply = Callable[[Match], Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """One rewrite. `where` is the source line that declares it."""

    name: str
    ops: tuple[str, ...]  # the ops it may replace
    apply: Apply
    where: str
    before: Callable[..., Any]  # builds a program on which it fires
    types: tuple[tuple[str, ...], ...]  # argument types of `before`, one tuple a test
    ulps: int = 0  # by how much the meanings of the two sides may differ, where ours is the more exact one

    def __str__(self) -> str:
        return f"{self.name} ({self.where})"


def _size(block: Block) -> int:
    """A measure of a program: its ops, and what they take and give."""
    return sum(1 + len(op.operands) + len(op.results) + sum(map(_size, op.blocks)) for op in block.ops)


@dataclass
class RuleSet:
    """Rules that run together, found by the op they replace."""

    rules: dict[str, Rule] = field(default_factory=dict)
    by_op: dict[str, list[Rule]] = field(default_factory=dict)

    def add(self, r: Rule) -> None:
        if r.name in self.rules:
            raise ValueError(f"rule {r.name!r} is declared twice")
        self.rules[r.name] = r
        for name in r.ops:
            assert name in REGISTRY, f"rule {r.name}: there is no op {name!r}"
            self.by_op.setdefault(name, []).append(r)

    def include(self, other: RuleSet) -> None:
        for r in other.rules.values():
            self.add(r)

    # ---- declaring
    def rule(
        self,
        name: str,
        before: Callable[..., Any],
        after: Callable[..., Any],
        on: str = "number",
        types: Sequence[Sequence[str]] = (),
    ) -> None:
        """A pattern rule for operands of the class `on` (float, integer, number, bool, bits, any; of the first variable)."""
        pattern, variables = _record(before)
        tests = tuple(map(tuple, types)) or tuple(default_types(on, variables))
        allowed = CLASSES[on]

        def apply(m: Match) -> Any:
            env: dict[int, Value] = {}
            if not _matches(pattern, m.op, m.operands, env) or not allowed(env[0].type.dtype):
                return None
            made = after(m.b, *[env[i] for i in range(variables)])
            return made if isinstance(made, Value) else m.b.const(made, dtype=m.type.dtype)

        self.add(Rule(name, (pattern.op,), apply, _caller(), before, tests))

    def rewrite(
        self, *ops: str, sample: Callable[..., Any], types: Sequence[Sequence[str]], ulps: int = 0
    ) -> Callable[[Apply], Apply]:
        """A function rule for the named ops; `sample(b, *args)` builds a program on which it fires, for each of `types`."""
        where = _caller()

        def declare(apply: Apply) -> Apply:
            self.add(Rule(apply.__name__.strip("_"), ops, apply, where, sample, tuple(map(tuple, types)), ulps))
            return apply

        return declare

    # ---- running
    def run(self, func: Func, rules: Counter[str], between: Callable[[Func], Func] | None = None) -> Func:
        """Apply the rules until none fires; `between` tidies up after each round. FX0405 if there is no end."""
        rounds, smallest = 0, _size(func.block)
        while rounds < MAX_ROUNDS:
            fired: Counter[str] = Counter()
            uses = count_uses(func.block)
            new = rewrite_func(func, lambda b, op, operands, blocks: self.step(b, op, operands, blocks, uses, fired))  # noqa: B023
            rules.update(fired)
            if not fired:
                return func
            func = between(new) if between is not None else new
            # A chain of n `if`s loses an unused result in n rounds, from its end to its start. Shrinking comes to an end.
            size = _size(func.block)
            rounds, smallest = (0, size) if size < smallest else (rounds + 1, smallest)
        last = ", ".join(str(self.rules[n]) for n in fired)
        raise error(
            "FX0405",
            f"rewriting @{func.name} does not come to rest: after {MAX_ROUNDS} rounds these rules still fire: {last}",
        )

    def step(self, b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...], uses: Counter[Value],
             fired: Counter[str]) -> Sequence[Value] | None:  # fmt: skip
        """The first rule that applies to one op."""
        rules = self.by_op.get(op.name)
        if not rules:
            return None
        scratch = Builder(op.loc)
        match = Match(scratch, op, operands, blocks, uses)
        for r in rules:
            made = r.apply(match)
            if made is None:
                if scratch.ops:  # what a rule built before it gave up
                    scratch = Builder(op.loc)
                    match = Match(scratch, op, operands, blocks, uses)
                continue
            values = [self.fitted(scratch, v, old, r) for v, old in zip(as_values(made), op.results, strict=True)]
            b.ops.extend(scratch.ops)
            fired[r.name] += 1
            return values
        return None

    @staticmethod
    def fitted(b: Builder, v: Value, old: Value, r: Rule) -> Value:
        """`v` broadcast to the type of what it replaces."""
        if same_type(v.type, old.type):
            return v
        if isinstance(v.type, TensorType) and isinstance(old.type, TensorType) and v.type.dtype == old.type.dtype:
            return b.emit("broadcast", v, shape=old.type.shape)[0]
        raise AssertionError(f"rule {r} gave {v.type} for {old.type}")


def count_uses(block: Block) -> Counter[Value]:
    """How often each value is an operand or yielded, in a block and all its regions."""
    uses: Counter[Value] = Counter(block.outs)
    for op in block.ops:
        uses.update(op.operands)
        for k in op.blocks:
            uses.update(count_uses(k))
    return uses


def _caller() -> str:
    frame = sys._getframe(2)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


# ---- patterns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """Matches any value; the same one wherever it stands."""

    index: int


@dataclass(frozen=True)
class Constant:
    """Matches a value that is this number everywhere, the sign of zero included."""

    value: Any


@dataclass(frozen=True)
class Node:
    """Matches an op."""

    op: str
    operands: tuple[Variable | Constant | Node, ...]


class _Recorder:
    """Stands in for a builder while a pattern is read."""

    def const(self, value: Any, dtype: Any = None) -> Constant:
        return Constant(value)

    def __getattr__(self, name: str) -> Callable[..., Node]:
        if name not in REGISTRY:
            raise AttributeError(name)
        return lambda *operands: Node(
            name, tuple(o if isinstance(o, (Variable, Node, Constant)) else Constant(o) for o in operands)
        )


def _record(before: Callable[..., Any]) -> tuple[Node, int]:
    count = before.__code__.co_argcount - 1 - len(before.__defaults__ or ())
    pattern = before(_Recorder(), *[Variable(i) for i in range(count)])
    assert isinstance(pattern, Node)
    return pattern, count


def _matches(p: Node, op: Op, operands: Sequence[Value], env: dict[int, Value]) -> bool:
    if p.op != op.name or len(p.operands) != len(operands):
        return False
    orders = [operands, operands[::-1]] if op.defn.commutes else [operands]
    for order in orders:
        trial = dict(env)
        if all(_matches_value(q, v, trial) for q, v in zip(p.operands, order, strict=True)):
            env.update(trial)
            return True
    return False


def _matches_value(p: Variable | Constant | Node, v: Value, env: dict[int, Value]) -> bool:
    if isinstance(p, Variable):
        return env.setdefault(p.index, v) is v
    if isinstance(p, Constant):
        found = scalar_of(v)
        return found is not None and is_number(found, p.value)
    return v.owner is not None and _matches(p, v.owner, v.owner.operands, env)


def scalar_of(v: Value) -> Any:
    """The number that `v` is everywhere, as a numpy scalar, if it is a constant of equal elements; None otherwise."""
    op = v.owner
    while op is not None and op.name in ("broadcast", "reshape", "transpose", "slice", "reverse"):
        op = op.operands[0].owner
    if op is None or op.name != "const":
        return None
    a = op.attrs["value"]
    if a.size == 0:
        return None
    first = a.flat[0]
    if a.size > 1 and not (a == first).all():
        return None
    if (
        a.size > 1
        and first == 0
        and a.dtype.kind not in "iub"
        and np.signbit(a.astype(np.float64)).any() != np.signbit(float(first))
    ):
        return None  # zeros of both signs are equal and not the same
    return first


def is_number(found: Any, wanted: Any) -> bool:
    """Whether a constant is the number a pattern names: -0.0 only where it says -0.0, true only for bools."""
    if isinstance(wanted, bool) or found.dtype.kind == "b":
        return isinstance(wanted, bool) and found.dtype.kind == "b" and bool(found) == wanted
    if float(found) != wanted:
        return False
    return (
        found.dtype.kind in "iu"
        or float(found) != 0
        or bool(np.signbit(float(found))) == bool(np.signbit(float(wanted)))
    )


# ---- tests ----------------------------------------------------------------------------------------------------------------

_SHAPES: Mapping[int, Sequence[Sequence[str]]] = {
    1: (("[7]",), ("",), ("[0,3]",), ("[2,3]",)),
    2: (("[3,4]", "[4]"), ("[5]", ""), ("[0,2]", "[2]"), ("[2,1]", "[1,3]")),
    3: (("[3,4]", "[4]", ""), ("[2]", "[2]", "[2]"), ("[2,1]", "[1,3]", "[0,1,1]")),
}
_DTYPES = {
    "float": ("f32", "f64", "f16", "bf16"),
    "integer": ("i32", "u8", "i8", "i64"),
    "number": ("f32", "f64", "f16", "bf16", "i32", "u8"),
    "signed": ("f32", "f16", "i32", "i8"),
    "bool": ("bool",),
    "bits": ("i32", "u8", "bool"),
    "any": ("f32", "f16", "i32", "u8", "bool"),
}


def default_types(on: str, variables: int) -> list[tuple[str, ...]]:
    """Argument types for testing a pattern: several shapes in the first element type, one in each other."""
    first, *rest = _DTYPES[on]
    shapes = _SHAPES[variables]
    return [tuple(first + s for s in group) for group in shapes] + [tuple(d + s for s in shapes[0]) for d in rest]


def constant_like(b: Builder, value: Any, t: TensorType) -> Value:
    """`value` everywhere, as type `t`."""
    d: DType = t.dtype
    v = b.const(value, dtype=d)
    return b.emit("broadcast", v, shape=t.shape)[0] if t.shape else v
