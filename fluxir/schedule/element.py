"""Element evaluation: one element of a tensor program as loop-level scalars. This is how fusion inlines.

Given a closed tensor-level block and loop-level memory for its arguments, `Elements.at(value, index)` emits the code
for one element of any value, asking each op's element rule and recursing into its operands. Values that were
materialised (kept in memory or already computed for this index) are read instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim


class Elements:
    """The `ElementContext` of one kernel. `b` is the builder at the current loop depth."""

    def __init__(self, b: Builder, memory: dict[Value, Value]) -> None:
        self.b = b
        self.memory = memory  # tensor value -> loop-level memory that holds it
        self._known: dict[tuple[Value, tuple[Value, ...]], tuple[Value, ...]] = {}

    def at(self, value: Value, index: Sequence[Value]) -> Value:
        key = (value, tuple(index))
        if key not in self._known:
            if value in self.memory:
                self._known[key] = self.b.emit("load", self.memory[value], *index)
            else:
                op = value.owner
                assert op is not None, f"{value!r} has no memory"
                assert op.defn.element is not None, f"{op.name} has no element rule"
                outer, self.b.loc = self.b.loc, op.loc or self.b.loc
                out = op.defn.element(self, op, tuple(index))
                self.b.loc = outer
                results = (out,) if isinstance(out, Value) else tuple(out)
                for r, v in zip(op.results, results, strict=True):
                    self._known[(r, tuple(index))] = (v,)
        return self._known[key][0]

    def dim(self, d: Dim) -> Value:
        return self.b.index(d)

    def inside(self, b: Builder) -> Elements:
        """The same context in a region of a loop or branch: what is known outside stays known."""
        inner = Elements(b, self.memory)
        inner._known = dict(self._known)
        b._consts = dict(self.b._consts)
        return inner
