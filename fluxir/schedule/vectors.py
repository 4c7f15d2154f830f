"""Element evaluation on vectors: `lanes` neighbouring elements along one loop variable at once.

`Lanes` stands beside `Elements`: elementwise ops are emitted on vectors, memory whose last axis runs with the variable
is loaded whole, and anything else is computed lane by lane by the scalar rules, so that every op works. A value that
does not depend on the variable stays a scalar until a vector is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.ir.build import Builder, copies
from fluxir.ir.core import Value
from fluxir.ir.dims import facts
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType, TensorType, VectorType
from fluxir.ops.maps import is_elementwise
from fluxir.ops.nest import cast
from fluxir.ops.rules import broadcast_index
from fluxir.schedule.element import Elements
from fluxir.schedule.group import shape_of

IN_FLIGHT = 4  # vectors side by side: their operations alternate, which hides latencies out of order execution cannot
MUCH_WORK = (96, 300)  # operations from which 2 and 1 vectors fill the registers and the processor's window


def in_flight(work: int) -> int:
    """How many vectors are computed side by side where an element is `work` operations."""
    return IN_FLIGHT >> sum(work > limit for limit in MUCH_WORK)


class RowElements(Elements):
    """Elements with `fixed` values: results of reductions at this row, whatever the index."""

    def __init__(self, b: Builder, memory: dict[Value, Value], fixed: dict[Value, Value]) -> None:
        super().__init__(b, memory)
        self.fixed = fixed

    def at(self, value: Value, index: Sequence[Value]) -> Value:
        return self.fixed[value] if value in self.fixed else super().at(value, index)

    def inside(self, b: Builder) -> RowElements:
        inner = RowElements(b, self.memory, self.fixed)
        inner._known = dict(self._known)
        b._consts = dict(self.b._consts)
        return inner


class Lanes:
    """Vectors of the elements at `var + 0 .. var + lanes - 1`. `fixed` holds vectors already known at this place. What does
    not depend on the variable is evaluated by `invariants` where given, which stand before the loop over it.

    `aligned`: `var` is a multiple of `lanes` and memories start at multiples of 16 bytes, so that loads of memory whose
    rows are whole vectors say how far they are aligned (a GPU loads 16 bytes at once only where it knows).
    """

    def __init__(
        self,
        elements: Elements,
        var: Value,
        lanes: int,
        fixed: dict[Value, Value] | None = None,
        aligned: bool = False,
        invariants: Elements | None = None,
    ) -> None:
        self.elements, self.b, self.lanes, self.aligned = elements, elements.b, lanes, aligned
        self.invariants = invariants or elements
        # A constant place is the same value as other constants of its size, which do not vary along the vector.
        self.given = var
        self.var = var = (
            self.b.add(var, self.b.index(0)) if var.owner is not None and var.owner.name == "const" else var
        )
        self.varying = {var}
        self.fixed = fixed or {}
        self._known: dict[tuple[Value, tuple[Value, ...]], Value] = {}

    def vector(self, value: Value, index: Sequence[Value]) -> Value:
        """The elements as a vector, splat if they are all the same. The variable is the last of `index` that is it."""
        if self.given is not self.var:
            last = max(i for i, v in enumerate(index) if v is self.given)
            index = (*index[:last], self.var, *index[last + 1 :])
        return self.splat(self.at(value, index))

    def splat(self, x: Value) -> Value:
        return x if isinstance(x.type, VectorType) else self.b.emit("splat", x, lanes=self.lanes)[0]

    def at(self, value: Value, index: Sequence[Value]) -> Value:
        """The elements: a vector, or a scalar where they do not depend on the variable."""
        if value in self.fixed:
            return self.fixed[value]
        if not any(i in self.varying for i in index):
            return self.invariants.at(value, index)
        key = (value, tuple(index))
        if key not in self._known:
            self._known[key] = self._compute(value, list(index))
        return self._known[key]

    def _compute(self, value: Value, index: list[Value]) -> Value:
        b, memory = self.b, self.elements.memory
        if value in memory:
            if index[-1] in self.varying and not any(i in self.varying for i in index[:-1]):
                align = aligned_bytes(memory[value], self.lanes) if self.aligned and index[-1] is self.var else 0
                return b.emit("load", memory[value], *index, lanes=self.lanes, align=align)[0]
            return self._by_lane(value, index)
        op = value.owner
        assert op is not None, f"{value!r} has no memory"
        if is_elementwise(op):
            parts = [self.at(v, broadcast_index(v, index, self.elements)) for v in op.operands]
            if any(isinstance(p.type, VectorType) for p in parts):
                parts = [self.splat(p) for p in parts]
            return b.emit(op.name, *parts, blocks=copies(op.blocks), loc=op.loc, **op.attrs)[0]
        match op.name:
            case "const":
                return self.elements.at(value, index)
            case "stop_gradient":
                return self.at(op.operands[0], index)
            case "iota" if op.attrs["dtype"].is_integer:
                return self._count(op.attrs["dtype"], index[op.attrs["axis"] % len(index)])
            case "transpose":
                rank = len(index)
                back: list[Value] = list(index)
                for j, k in enumerate(op.attrs["perm"]):
                    back[k % rank] = index[j]
                return self.at(op.operands[0], back)
            case "broadcast":
                (x,) = op.operands
                shape = shape_of(x)
                axes = op.attrs["axes"]
                axes = range(len(index) - len(shape), len(index)) if axes is None else axes
                return self.at(x, [b.index(0) if d == 1 else index[a] for d, a in zip(shape, axes)])
            case "slice" if all(s == 1 for s in op.attrs["stride"] or ()):
                moved: list[Value] = []
                for i, offset in zip(index, op.attrs["start"]):
                    at = i if offset == 0 else b.add(i, b.index(offset))
                    if i in self.varying:
                        self.varying.add(at)
                    moved.append(at)
                return self.at(op.operands[0], moved)
        return self._by_lane(value, index)

    def _count(self, dtype: DType, i: Value) -> Value:
        """i, i+1, ... (or i in every lane where it does not vary) as `dtype`."""
        b = self.b
        start = b.emit("splat", cast(b, i, dtype), lanes=self.lanes)[0]
        if i not in self.varying:
            return start
        steps = b.emit("splat", b.const(0, dtype=dtype), lanes=self.lanes)[0]
        for lane in range(1, self.lanes):
            steps = b.emit("insert", steps, b.const(lane, dtype=dtype), lane=lane)[0]
        return b.add(start, steps)  # type: ignore[no-any-return]

    def _by_lane(self, value: Value, index: list[Value]) -> Value:
        b = self.b
        assert isinstance(value.type, TensorType)
        out: Value | None = None
        for lane in range(self.lanes):
            at = [b.add(i, b.index(lane)) if i in self.varying and lane else i for i in index]
            x = self.elements.at(value, at)
            out = b.emit("splat", x, lanes=self.lanes)[0] if out is None else b.emit("insert", out, x, lane=lane)[0]
        assert out is not None
        return out


def aligned_bytes(mem: Value, lanes: int) -> int:
    """The alignment of every `lanes` elements from a multiple of `lanes` in the last axis: bytes, at most 16; 0 where the
    rows are not whole vectors. The memory itself starts at a multiple of 16 bytes."""
    t = mem.type
    assert isinstance(t, MemType)
    return min(16, lanes * t.dtype.itemsize) if facts().divides(lanes, t.shape[-1]) else 0


__all__ = ["Lanes", "RowElements", "aligned_bytes", "in_flight"]
