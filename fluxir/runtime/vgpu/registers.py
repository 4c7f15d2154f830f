"""How many registers a thread of a kernel needs: an estimate from the linked code, and what ptxas says where it is known.

PTX has as many registers as it likes; ptxas gives each value one of the 255 of a thread, for as long as it is needed. So the most
that are needed at any one place is what an allocation without spills takes (`pressure`); `estimate` adds what ptxas uses besides,
found by comparison with its reports (tests hold it to that).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .code import Block, Code
from .isa import Form
from .link import call_parts
from .ptx import Address, Group, Instruction, Negated, Operand, Pair, Register, Symbol, Vector, type_bytes
from .scope import Scope

__all__ = ["estimate", "parse_ptxas", "pressure"]

_NO_RESULT = frozenset(
    "st red bra brx bar barrier membar fence cp prefetch prefetchu discard applypriority exit ret trap brkpt nanosleep setmaxnreg"
    " stmatrix pmevent griddepcontrol call tensormap".split()
)
BESIDES = 4  # registers that ptxas uses for addresses and constants, found by comparison
LEAST = 8


def estimate(code: Code) -> int:
    """Registers of a thread, of 32 bits each: about what ptxas gives it."""
    return min(255, max(LEAST, pressure(code) + BESIDES))


def pressure(code: Code) -> int:
    """The most 32-bit registers that hold values needed later, at any place of the code. Predicates have registers of their
    own and do not count."""
    sizes = [0 if kind == "pred" else max(1, type_bytes(kind) // 4) for kind in code.registers]
    steps = [[_effects(form, scope) for _, form, scope in b.instructions] for b in code.blocks]
    after = [_successors(b) for b in code.blocks]
    live_in: list[frozenset[int]] = [frozenset()] * len(code.blocks)
    most, changed = 0, True
    while changed:
        changed = False
        for i in reversed(range(len(code.blocks))):
            live = set().union(*(live_in[j] for j in after[i]))
            for defined, used, certain in reversed(steps[i]):
                most = max(most, sum(sizes[s] for s in live | defined))
                if certain:
                    live -= defined
                live |= used
            most = max(most, sum(sizes[s] for s in live))
            if live != live_in[i]:
                live_in[i], changed = frozenset(live), True
    return most


def _successors(b: Block) -> list[int]:
    if not b.instructions:
        return [b.after]
    _, form, scope = b.instructions[-1]
    x = form.instruction
    out: list[int] = []
    if x.name == "bra":
        out.append(scope.target(x.operands[0], x))
    elif x.name == "brx" and isinstance(x.operands[-1], Symbol):
        out += [scope.target(Symbol(n), x) for n in scope.table(x.operands[-1].name, x)]
    goes_on = x.name not in ("bra", "brx", "ret", "exit", "trap") or x.guard is not None
    if goes_on and b.after >= 0:
        out.append(b.after)
    return out


def _effects(form: Form, scope: Scope) -> tuple[set[int], set[int], bool]:
    """(slots written, slots read, whether the writing is certain) of an instruction."""
    x = form.instruction
    writes, reads = scope.writes_in, scope.reads_in
    targets: tuple[Operand, ...] = ()
    sources = x.operands
    if x.name == "call":
        targets, callee, given, _ = call_parts(x)
        sources = (*given, callee)
    elif x.name not in _NO_RESULT and x.operands and not isinstance(x.operands[0], Address | Symbol | Group):
        targets = x.operands[:1]
        sources = x.operands if x.name == "wgmma" else x.operands[1:]  # wgmma adds to its accumulators
    defined = {_slot(writes, r, x) for o in targets for r in _registers(o)}
    used = {_slot(reads, r, x) for o in sources for r in _registers(o)}
    if x.guard is not None:
        used |= {_slot(reads, r, x) for r in _registers(x.guard)}
    return defined - {-1}, used - {-1}, x.guard is None


def _slot(scope: Scope, r: Register, x: Instruction) -> int:
    return scope.slots.get(r.name, -1)


def _registers(o: Operand) -> Iterator[Register]:
    if isinstance(o, Register):
        yield o
    elif isinstance(o, Negated):
        yield from _registers(o.register)
    elif isinstance(o, Address):
        yield from _registers(o.base)
    elif isinstance(o, Vector | Group):
        for item in o.items:
            yield from _registers(item)
    elif isinstance(o, Pair):
        yield from _registers(o.first)
        yield from _registers(o.second)


def parse_ptxas(text: str) -> dict[str, int]:
    """Registers by kernel from what `ptxas -v` writes."""
    found = re.findall(r"Compiling entry function '([^']+)'.*?Used (\d+) registers", text, re.S)
    return {name: int(n) for name, n in found}
