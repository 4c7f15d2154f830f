"""The program: Value, Op, Block, Func, Module. Persistent SSA with one-block regions.

Invariants:
- Objects are frozen after construction. A pass builds new ones and shares what did not change.
- A `Value` is an identity: defined once, by an `Op` (`owner`) or as an argument of a `Block` (`owner is None`).
- A region is one `Block`: arguments, a sequence of ops, the values it yields. There is no control-flow graph.
- At tensor level (`Func.level == "tensor"`) regions are *closed*: a block uses only its own arguments and ops.
  At loop level ("kernel", "host") a block also sees the values of the blocks around it.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxir.errors import Location
from fluxir.ir.dims import Facts, facts, symbols_of
from fluxir.ir.types import MemType, TensorType, Type, VectorType

if TYPE_CHECKING:
    from fluxir.ir.opdef import OpDef


class Value:
    """One SSA value. `name` is a hint for printing and messages; identity is what counts."""

    __slots__ = ("type", "owner", "index", "name")

    def __init__(self, type: Type, owner: Op | None = None, index: int = 0, name: str = "") -> None:
        self.type, self.owner, self.index, self.name = type, owner, index, name

    def __repr__(self) -> str:
        source = f"{self.owner.name}.{self.index}" if self.owner else f"arg{self.index}"
        return f"<{self.name or source}: {self.type}>"

    @property
    def dtype(self) -> Any:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape


class Attrs(dict[str, Any]):
    """An op's attributes: a dict that also reads as attributes (`a.axis`). Never changed after construction."""

    __slots__ = ()

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


class Op:
    """One operation. Result types come from the type rule of its definition; nobody states them.

    `inferred`: the facts about sizes under which the rule gave these types; None where somebody did state them.
    """

    __slots__ = ("name", "defn", "operands", "attrs", "blocks", "loc", "results", "inferred")

    def __init__(
        self,
        defn: OpDef,
        operands: Sequence[Value],
        attrs: Mapping[str, Any] = Attrs(),
        blocks: Sequence[Block] = (),
        loc: Location | None = None,
        result_types: Sequence[Type] | None = None,
    ) -> None:
        self.name, self.defn = defn.name, defn
        self.operands, self.blocks, self.loc = tuple(operands), tuple(blocks), loc
        self.attrs = attrs if isinstance(attrs, Attrs) else Attrs(attrs)
        self.inferred: Facts | None = None
        if result_types is None:
            result_types = defn.infer(tuple([v.type for v in self.operands]), self.attrs, self.blocks)
            self.inferred = facts()
        self.results = tuple([Value(t, self, i) for i, t in enumerate(result_types)])

    @property
    def result(self) -> Value:
        """The only result."""
        (r,) = self.results
        return r

    def __repr__(self) -> str:
        return (
            f"<{self.name}({', '.join(str(v.type) for v in self.operands)}) -> {[str(r.type) for r in self.results]}>"
        )


class Block:
    """Arguments, ops in order, and the values the block yields."""

    __slots__ = ("args", "ops", "outs", "_digest")

    def __init__(self, args: Sequence[Value], ops: Sequence[Op], outs: Sequence[Value]) -> None:
        self.args, self.ops, self.outs = tuple(args), tuple(ops), tuple(outs)
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Structural hash of the block by itself: equal for blocks that differ only in value names and locations."""
        if self._digest is None:
            out: list[str] = []
            _describe(out, self, {}, {})
            self._digest = hashlib.blake2b("".join(out).encode(), digest_size=16).hexdigest()
        return self._digest

    def walk(self) -> Iterator[Op]:
        """All ops, those inside regions after the op that holds them."""
        todo = [iter(self.ops)]
        while todo:
            for op in todo[-1]:
                yield op
                if op.blocks:
                    todo += [iter(block.ops) for block in reversed(op.blocks)]
                    break
            else:
                todo.pop()


@dataclass(frozen=True, eq=False)
class Func:
    """A named block. `level` is "tensor" (pure), "kernel" (loops over memory) or "host" (launches kernels).

    Argument names live on the argument values; `result_names` may be empty. `attrs` holds per-function facts
    such as a GPU kernel's `grid` and `block`. Equality is identity; structural equality is `digest`.
    """

    name: str
    block: Block
    level: str = "tensor"
    attrs: Attrs = field(default_factory=Attrs)
    result_names: tuple[str, ...] = ()
    loc: Location | None = None

    @property
    def args(self) -> tuple[Value, ...]:
        return self.block.args

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.block.ops

    @property
    def outs(self) -> tuple[Value, ...]:
        return self.block.outs

    def walk(self) -> Iterator[Op]:
        return self.block.walk()

    @cached_property
    def digest(self) -> str:
        """Structural hash: equal for functions that differ only in value names, locations and their own name."""
        text = repr((self.block.digest, self.level, plain(self.attrs)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def op_count(self) -> int:
        return sum(1 for _ in self.walk())

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the size symbols that occur in argument types, attributes and result types, sorted."""
        found: set[str] = set()

        def see(x: Any) -> None:
            if isinstance(x, (TensorType, MemType)):
                for d in x.shape:
                    found.update(symbols_of(d))
            elif type(x).__name__ == "Poly":
                found.update(symbols_of(x))
            elif isinstance(x, tuple):
                for y in x:
                    see(y)
            elif isinstance(x, dict):
                for y in x.values():
                    see(y)

        def blocks(block: Block) -> None:
            for v in block.args:
                see(v.type)
            for op in block.ops:
                see(op.attrs)
                for r in op.results:
                    see(r.type)
                for inner in op.blocks:
                    blocks(inner)

        see(self.attrs)
        blocks(self.block)
        return tuple(sorted(found))

    def with_block(self, block: Block) -> Func:
        return self if block is self.block else replace(self, block=block)


@dataclass(frozen=True, eq=False)
class Module:
    """Functions by name (the entry is the first), and the facts about their size symbols."""

    name: str
    funcs: Mapping[str, Func]
    facts: Facts = field(default_factory=Facts)
    attrs: Attrs = field(default_factory=Attrs)

    @property
    def entry(self) -> Func:
        return next(iter(self.funcs.values()))

    def with_func(self, func: Func) -> Module:
        """The module with `func` in place of the function of the same name (or added last)."""
        return replace(self, funcs={**self.funcs, func.name: func})

    @cached_property
    def digest(self) -> str:
        h = hashlib.blake2b(digest_size=16)
        for name, f in self.funcs.items():
            h.update(f"{name!r}:{f.digest};".encode())
        h.update(repr((self.facts.describe(), plain(self.attrs))).encode())
        return h.hexdigest()


# ---- structural hash ----------------------------------------------------------------------------------------------


_digests: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_digest_of: dict[int, str] = {}


def array_digest(a: np.ndarray[Any, Any]) -> str:
    """Digest of dtype, shape and bytes of an array; remembered for large read-only arrays, which weights are."""
    large = a.size > 1024 and not a.flags.writeable
    if large and _digests.get(id(a)) is a:
        return _digest_of[id(a)]
    h = hashlib.sha256(f"{a.dtype.name}{a.shape}".encode())  # in hardware, where blake2 is not
    h.update(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)
    digest = h.hexdigest()[:24]
    if large:
        _digests[id(a)] = a
        _digest_of[id(a)] = digest
        weakref.finalize(a, _digest_of.pop, id(a), None)
    return digest


_SIMPLE = frozenset((int, str, bool, type(None)))
_SMALL = 16  # elements of an array whose bytes say less than a digest of them


def plain(x: Any) -> Any:
    """An attribute as data whose `repr` tells it from all others."""
    kind = type(x)
    if kind in _SIMPLE:
        return x
    if kind is tuple or isinstance(x, (tuple, list)):
        return tuple([plain(v) for v in x])
    if isinstance(x, dict):
        return tuple([(k, plain(x[k])) for k in sorted(x)])
    if isinstance(x, np.ndarray):
        if x.size <= _SMALL:
            return ("array", x.dtype.char, x.shape, x.tobytes())
        return ("array", array_digest(x))
    if isinstance(x, float):
        return x.hex()
    return x if isinstance(x, (int, str)) else str(x)


def _describe(out: list[str], block: Block, number: dict[Value, int], types: dict[int, str]) -> None:
    """Append the text of a block: values by number (-1: from outside), types by `types`, which knows them by identity."""

    def named(t: Type) -> str:
        found = types.get(id(t))
        if found is None:
            found = types[id(t)] = f":{t}"
        return found

    for a in block.args:
        number[a] = len(number)
        out.append(named(a.type))
    for op in block.ops:
        out.append(f";{op.name}(")
        out.append(",".join([str(number.get(v, -1)) for v in op.operands]))
        out.append(f"){plain(op.attrs)!r}" if op.attrs else ")")
        for inner in op.blocks:
            out.append("{")
            _describe(out, inner, number, types)
            out.append("}")
        for r in op.results:
            number[r] = len(number)
            out.append(named(r.type))
    out.append("yield " + ",".join([str(number.get(v, -1)) for v in block.outs]))


__all__ = [
    "Attrs",
    "Block",
    "Func",
    "Location",
    "Module",
    "Op",
    "Value",
    "array_digest",
    "plain",
    "MemType",
    "TensorType",
    "VectorType",
]
