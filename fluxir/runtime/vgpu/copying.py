"""Registers that only carry what they were loaded with from one place in memory to another.

To copy memory that nobody has written is no fault by itself: unoptimised code copies structures with their holes, hands over
variables that are set later, and sets bit fields one by one. So a load from local memory into such a register is not objected to;
what is stored from it is as unwritten as what was loaded, and whoever computes with that is told of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .ptx import Address, Function, Group, Instruction, Negated, Operand, Pair, Register, Vector

__all__ = ["Carriers", "carriers"]

_FIELDS = ("and", "bfi")  # what sets a part of a word and keeps the rest


@dataclass(frozen=True)
class Carriers:
    """`loaded`: by register, the one that a load has filled with what it holds. `fields`: registers that hold a word of which a
    part is replaced and which is stored where it was."""

    loaded: dict[str, str] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()


def carriers(function: Function) -> Carriers:
    """The registers of a function, each written once, that are loaded, moved and stored and nothing else."""
    loads: dict[str, Instruction] = {}
    moves: list[tuple[str, str]] = []
    written: set[str] = set()
    spoiled: set[str] = set()
    others: dict[str, list[Instruction]] = {}
    stores: set[Operand] = set()

    def define(name: str) -> None:
        (spoiled if name in written else written).add(name)

    def use(operands: Iterator[str], x: Instruction) -> None:
        for name in operands:
            others.setdefault(name, []).append(x)

    for x in function.body or ():
        if not isinstance(x, Instruction):
            continue
        operands = x.operands
        if x.name == "ld" and x.guard is None and len(operands) == 2:
            for name in _names(operands[0]):
                define(name)
                loads[name] = x
            use(_names(operands[1]), x)
        elif x.name == "mov" and x.guard is None and all(isinstance(o, Register) for o in operands):
            to, source = (name for o in operands for name in _names(o))
            define(to)
            moves.append((to, source))
        elif x.name == "st" and len(operands) == 2:
            use(_names(operands[0]), x)
            stores.add(operands[0])
        else:
            for o in (*operands, *([x.guard] if x.guard else [])):
                use(_names(o), x)
    fields = frozenset(
        name
        for name, x in loads.items()
        if name in others
        and name not in spoiled
        and x.operands[1] in stores
        and all(o.name in _FIELDS for o in others[name])
    )
    spoiled |= set(others)
    found = {name: name for name in loads if name not in spoiled}
    for to, source in moves:  # a register is written before it is read, and so they stand in the text
        if source in found and to not in spoiled:
            found[to] = found[source]
    for to, source in reversed(moves):  # what was loaded is spoiled where a copy of it is
        if source in found and (to not in found or to in spoiled):
            spoiled |= {name for name, root in found.items() if root == found[source]}
    return Carriers({name: root for name, root in found.items() if root not in spoiled}, fields)


def _names(operand: Operand) -> Iterator[str]:
    """The registers in an operand."""
    if isinstance(operand, Register):
        yield operand.name
    elif isinstance(operand, Negated):
        yield operand.register.name
    elif isinstance(operand, Address):
        yield from _names(operand.base)
        if operand.coordinates is not None:
            yield from _names(operand.coordinates)
    elif isinstance(operand, Vector | Group):
        for item in operand.items:
            yield from _names(item)
    elif isinstance(operand, Pair):
        yield from _names(operand.first)
        yield from _names(operand.second)
