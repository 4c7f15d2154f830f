"""A PTX module on a device: where its variables lie, and what each kernel takes.

`Image` is what the linker sees for one kernel. Variables of the module live in the device's heap, constant ones write-protected;
shared variables are laid out for each kernel that uses them, with nothing between them, so that an index that is off is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .code import ZONE, Place
from .ptx import Address, Function, Group, Module, Negated, Operand, Pair, Symbol, Variable, Vector

if TYPE_CHECKING:
    from .memory import Heap

__all__ = ["FUNCTION_BASE", "Image", "allocate_variables", "layout_arguments"]

FUNCTION_BASE = 0x7500_0000_0000
SHARED_ALIGN = 128


def allocate_variables(module: Module, heap: Heap) -> dict[str, Place]:
    """Give the module's global and constant variables memory, with their initial bytes."""
    places: dict[str, Place] = {}
    for v in module.variables.values():
        if v.space in ("global", "const") and v.type not in ("texref", "samplerref", "surfref"):
            places[v.name] = Place(
                "global", heap.allocate(v.nbytes, v.name, constant=v.space == "const", internal=True)
            )
    for i, name in enumerate(module.functions):
        places[name] = Place("function", FUNCTION_BASE + 16 * i)
    for v in module.variables.values():
        if v.name in places:
            heap.write(places[v.name].offset, initial_bytes(v, places))
    return places


def initial_bytes(v: Variable, places: Mapping[str, Place]) -> bytes:
    """What a variable holds at first: its initialiser, addresses filled in, and zeros."""
    data = bytearray(v.initial.ljust(v.nbytes, b"\0"))
    width = v.nbytes // v.count if v.count else 0
    for at, symbol in v.pointers:
        address = (places[symbol.name].offset if symbol.name in places else 0) + symbol.offset
        size = width if width > 1 else 8
        data[at : at + size] = (address & (256**size - 1)).to_bytes(size, "little")[: len(data) - at]
    return bytes(data[: v.nbytes])


def layout_arguments(function: Function) -> tuple[dict[str, tuple[int, Variable]], int]:
    """Byte offset and declaration of each parameter, and the bytes in all."""
    out: dict[str, tuple[int, Variable]] = {}
    top = 0
    for v in function.parameters:
        top = -(-top // v.align) * v.align
        out[v.name] = (top, v)
        top += v.nbytes
    return out, top


class Image:
    """One kernel of a module on a device."""

    def __init__(self, module: Module, kernel: Function, globals_: Mapping[str, Place]) -> None:
        self.module, self.kernel = module, kernel
        self.functions = module.functions
        self.places: dict[str, Place] = dict(globals_)
        self.by_address = {p.offset: name for name, p in globals_.items() if p.space == "function"}
        self.shared: list[tuple[int, int, str]] = []  # (offset, bytes, name)
        self.static_shared = 0  # bytes the kernel declares, as a GPU counts them
        self.dynamic: list[str] = []
        top = 0
        for v in self._shared_variables():
            if not v.nbytes:
                self.dynamic.append(v.name)
                continue
            align = max(v.align, 16)
            self.static_shared = -(-self.static_shared // v.align) * v.align + v.nbytes
            top = -(-top // max(align, SHARED_ALIGN)) * max(align, SHARED_ALIGN)
            self.shared.append((top, v.nbytes, v.name))
            self.places[v.name] = Place("shared", top)
            top += v.nbytes + ZONE
        self.dynamic_offset = -(-top // 1024) * 1024  # as aligned as a bulk copy wants it
        for name in self.dynamic:
            self.places[name] = Place("shared", self.dynamic_offset)

    def arguments(self, function: Function) -> dict[str, tuple[int, Variable]]:
        return layout_arguments(function)[0]

    def _shared_variables(self) -> Iterator[Variable]:
        used = set(self._names(self.kernel, set()))
        for v in self.module.variables.values():
            if v.space == "shared" and v.name in used:
                yield v
        for f in self._reached:
            yield from (v for v in f.variables if v.space == "shared")

    def _names(self, f: Function, seen: set[str]) -> Iterator[str]:
        """The names of variables that a function and what it calls mention."""
        work, self._reached = [f], []
        while work:
            g = work.pop()
            if g.name in seen or g.body is None:
                continue
            seen.add(g.name)
            self._reached.append(g)
            for x in g.body:
                for name in _symbols(getattr(x, "operands", ())):
                    yield name
                    if name in self.module.functions:
                        work.append(self.module.functions[name])
                    v = self.module.variables.get(name)
                    if v is not None:
                        work += [
                            self.module.functions[s.name] for _, s in v.pointers if s.name in self.module.functions
                        ]

    def describe(self, kind: str, at: int, locals_: list[tuple[int, int, str]], dynamic_bytes: int) -> str:
        """Which variable an offset in shared or local memory belongs to, for reports."""
        known = list(self.shared) if kind == "shared" else list(locals_)
        if kind == "shared" and dynamic_bytes:
            known.append((self.dynamic_offset, dynamic_bytes, "dynamic shared memory"))
        before = [v for v in known if v[0] <= at]
        if not known:
            return f"the kernel has no {kind} memory"
        if not before:
            return f"{known[0][0] - at} bytes before `{known[0][2]}`"
        offset, size, name = max(before)
        inside = at - offset
        if inside < size:
            return f"byte {inside} of `{name}` ({size} bytes)"
        return f"{inside - size} bytes past the end of `{name}` ({size} bytes)"


def _symbols(operands: tuple[Operand, ...]) -> Iterator[str]:
    for x in operands:
        if isinstance(x, Symbol):
            yield x.name
        elif isinstance(x, Address):
            yield from _symbols((x.base,))
        elif isinstance(x, Vector | Group):
            yield from _symbols(x.items)
        elif isinstance(x, Pair):
            yield from _symbols((x.first, x.second))
        elif isinstance(x, Negated):
            continue
