"""A PTX function -> code that a `Wave` runs: basic blocks of closures over register slots.

`link(function, image)` flattens a kernel: direct calls are inlined (so that barriers in them work), each with its own names;
calls of a function from itself and calls through pointers stay calls, with frames of their own. Blocks are numbered in the
order of `flow`, so the executor runs the one with the lowest number. What an instruction means is said in `instructions/`;
how it reads and writes, in `scope`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from . import isa
from .code import PATIENCE, Block, Code, Frame, Place, Step
from .copying import Carriers
from .flow import order
from .ptx import (
    Address,
    Function,
    Group,
    Instruction,
    Label,
    Negated,
    Operand,
    Register,
    Symbol,
    Variable,
    type_bytes,
)
from .scope import Joined, Scope, number_of, register_writer
from .warpgroups import watched

if TYPE_CHECKING:
    from .image import Image
    from .wave import Mask, Wave

__all__ = ["call_parts", "link"]

INLINE_LIMIT = 100_000  # instructions after inlining; beyond it calls stay calls
FLOPS = {"fma": 2, "mad": 2}
_SPIN = frozenset(("atom", "nanosleep"))
_REGISTER = re.compile(r"%[\w$]+")


# ---- linking ------------------------------------------------------------------------------------------------------------


_Item = tuple[Instruction, Scope] | str
"""An instruction in its scope, or the full name of a label."""


def link(function: Function, image: Image) -> Code:
    """A kernel ready to run. FX0710 and FX0711 for what it cannot be made of."""
    return Linker(image).code(function, kernel=True)


class Linker:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.copies = 0
        self.carriers: dict[str, Carriers] = {}
        self.watches = False  # the function multiplies matrices asynchronously

    def code(self, function: Function, kernel: bool) -> Code:
        frame = Frame()
        scope = Scope(self, frame, function, "")
        out = Code(function.name, [], frame.registers, frame.locals, 0)
        if kernel:
            scope.places.update(
                {name: Place("argument", offset) for name, (offset, _) in self.image.arguments(function).items()}
            )
        else:
            out.arguments = [self._formal(scope, frame, v) for v in function.parameters]
            out.results = [self._formal(scope, frame, v) for v in function.results]
        items: list[_Item] = []
        self._flatten(function, scope, items, None, (function.name,))
        out.blocks = self._blocks(items, scope)
        out.local_bytes = frame.top
        return out

    def _formal(self, scope: Scope, frame: Frame, v: Variable) -> tuple[str, int]:
        """A parameter or result of a function that is really called: ("register", slot) or ("local", offset)."""
        if v.space == "reg":
            scope.slots[v.name] = frame.slot(v.type)
            return "register", scope.slots[v.name]
        scope.places[v.name] = frame.local(v)
        return "local", scope.places[v.name].offset

    # ---- flattening
    def _flatten(
        self, function: Function, scope: Scope, items: list[_Item], leave: str | None, above: tuple[str, ...]
    ) -> None:
        """Append the function's instructions; `ret` goes to the label `leave` in an inlined one."""
        assert function.body is not None
        for x in function.body:
            if isinstance(x, Label):
                items.append(scope.prefix + x.name)
            elif x.name == "call":
                self._call(x, scope, items, above)
            elif x.name == "ret" and leave is not None:
                items.append((replace(x, name="bra", modifiers=(), operands=(Symbol(leave),)), scope))
            else:
                items.append((x, scope))

    def _call(self, x: Instruction, scope: Scope, items: list[_Item], above: tuple[str, ...]) -> None:
        results, callee, arguments, _ = call_parts(x)
        target = self.image.functions.get(callee.name) if isinstance(callee, Symbol) else None
        if (
            target is None
            or target.body is None
            or target.name in above
            or len(items) > INLINE_LIMIT
            or len(above) > 64
        ):
            items.append((x, scope))
            return
        self.copies += 1
        inner = Scope(self, scope.frame, target, f"{target.name}#{self.copies}.")
        self._bind(x, scope, inner, target.parameters, arguments, items)
        if len(results) not in (0, len(target.results)):
            isa.reject(x, f"{len(results)} results for {len(target.results)}", "FX0711")
        for v, r in zip(target.results, results):
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
            else:
                inner.places[v.name] = scope.place(r.name, x) if isinstance(r, Symbol) else scope.frame.local(v)
        for v in target.results[len(results) :]:  # nobody wants them
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
            else:
                inner.places[v.name] = scope.frame.local(v)
        skip = f"#call{self.copies}"
        if x.guard is not None:  # a guarded call: those it is not for go around it
            flipped = x.guard.register if isinstance(x.guard, Negated) else Negated(x.guard)
            items.append((replace(x, name="bra", modifiers=(), operands=(Symbol(skip),), guard=flipped), scope))
        self._flatten(target, inner, items, skip, (*above, target.name))
        items.append(skip)
        for v, r in zip(target.results, results):
            if v.space == "reg":
                items.append((_move(x, r, Register(v.name), v.type), Joined(scope, inner)))
            elif not isinstance(r, Symbol):
                load = Instruction(
                    "ld", ("local", v.type), (r, Address(Symbol(v.name))), x.guard, x.line, x.text, x.location
                )
                items.append((load, Joined(inner, scope, writes=True)))

    def _bind(
        self, x: Instruction, scope: Scope, inner: Scope, formals: Sequence[Variable], actuals: Sequence[Operand],
        items: list[_Item],
    ) -> None:  # fmt: skip
        if len(formals) != len(actuals):
            isa.reject(x, f"{len(actuals)} arguments for {len(formals)} parameters", "FX0711")
        for v, a in zip(formals, actuals):
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
                items.append((_move(x, Register(v.name), a, v.type), Joined(inner, scope)))
            elif isinstance(a, Symbol):
                inner.places[v.name] = scope.place(a.name, x)
            else:  # a register or a number for a parameter in memory
                inner.places[v.name] = scope.frame.local(v)
                store = Instruction(
                    "st",
                    ("local", f"b{8 * type_bytes(v.type)}"),
                    (Address(Symbol(v.name)), a),
                    x.guard,
                    x.line,
                    x.text,
                    x.location,
                )
                items.append((store, Joined(inner, scope)))

    # ---- blocks
    def _blocks(self, items: list[_Item], scope: Scope) -> list[Block]:
        self.watches = any(not isinstance(i, str) and i[0].name == "wgmma" for i in items)
        runs, labels = _split(items, scope)
        successors = [_successors(run, i, labels) for i, run in enumerate(runs)]
        latches = _latches(successors)
        routed = [[latches.get((i, s), s) for s in found] for i, found in enumerate(successors)]
        headers = {latch: header for (_, header), latch in latches.items()}
        routed += [[headers[latch]] for latch in sorted(headers)]
        ranks = order(routed)
        rank = {old: new for new, old in enumerate(ranks)}
        blocks: list[Block] = []
        loops = _loop_spins(runs, successors, rank)
        direct = {name: rank[i] for name, i in labels.items()}
        through_latches = {i for i, _ in latches}
        for old in ranks:
            if old in headers:
                patience = max(loops[i] for (i, _), latch in latches.items() if latch == old)
                blocks.append(_latch(runs[headers[old]][0][0], rank[headers[old]], patience))
                continue
            numbered = direct
            if old in through_latches:
                numbered = {name: rank[latches.get((old, i), i)] for name, i in labels.items()}
            after = rank[latches.get((old, old + 1), old + 1)] if old + 1 < len(runs) else -1
            block = self._block(runs[old], numbered, after)
            block.spins, block.patience = loops[old] > 0, loops[old]
            blocks.append(block)
        return blocks

    def _block(self, run: list[tuple[Instruction, Scope]], labels: dict[str, int], after: int) -> Block:
        steps: list[Step] = []
        end: Step | None = None
        found: list[tuple[isa.Opcode, isa.Form, Scope]] = []
        classes: Counter[str] = Counter()
        flops = 0
        for x, scope in run:
            scope.labels, scope.next = labels, after
            opcode, form = isa.form_of(x)
            found.append((opcode, form, scope))
            group = opcode.group(form)
            classes[group] += 1
            if group.startswith("float"):
                kind = form.types[-1] if form.types else ""
                flops += FLOPS.get(x.name, 1) * (2 if kind.endswith("x2") else 1)
            if opcode.sync == "end":
                end = _meaning(opcode, form, scope)
            else:
                steps.append(_step(opcode, form, scope))
        if end is None:

            def end(w: Wave, m: Mask, after: int = after) -> None:
                w.go(after, m.bits)

        return Block(run[0][0], steps, end, found, dict(classes), flops, after=after, labels=labels)


def _move(x: Instruction, to: Operand, source: Operand, kind: str) -> Instruction:
    kind = kind if kind == "pred" else f"b{8 * type_bytes(kind)}"
    return Instruction("mov", (kind,), (to, source), x.guard, x.line, x.text, x.location)


def call_parts(x: Instruction) -> tuple[tuple[Operand, ...], Symbol | Register, tuple[Operand, ...], Symbol | None]:
    """(results, callee, arguments, prototype or table) of a call."""
    rest = list(x.operands)
    results: tuple[Operand, ...] = ()
    if rest and isinstance(rest[0], Group):
        results = rest[0].items
        rest.pop(0)
    callee = rest.pop(0)
    assert isinstance(callee, Symbol | Register)
    arguments: tuple[Operand, ...] = ()
    if rest and isinstance(rest[0], Group):
        arguments = rest[0].items
        rest.pop(0)
    table = rest.pop(0) if rest else None
    assert table is None or isinstance(table, Symbol)
    return results, callee, arguments, table


def _split(items: list[_Item], home: Scope) -> tuple[list[list[tuple[Instruction, Scope]]], dict[str, int]]:
    """Runs of instructions that are entered at the top and left at the bottom, and which run each label begins. The last
    one ends the function."""
    runs: list[list[tuple[Instruction, Scope]]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    run: list[tuple[Instruction, Scope]] = []
    line = home.function.line
    for item in items:
        if isinstance(item, str):
            if run:
                runs.append(run)
                run = []
            waiting.append(item)
            continue
        x, _ = item
        line = x.line
        for name in waiting:
            labels[name] = len(runs)
        waiting = []
        run.append(item)
        declared = isa.opcodes().get(x.name, ())
        if any(o.sync == "end" for o in declared) and isa.form_of(x)[0].sync == "end":
            runs.append(run)
            run = []
    if run:
        runs.append(run)
    last = runs[-1][-1][0] if runs else None
    if waiting or last is None or last.guard is not None or last.name not in ("ret", "exit", "bra", "trap"):
        for name in waiting:
            labels[name] = len(runs)
        runs.append([(Instruction("ret", (), (), None, line, "ret;"), home)])
    return runs, labels


def _successors(run: list[tuple[Instruction, Scope]], i: int, labels: dict[str, int]) -> list[int]:
    x, scope = run[-1]
    out: list[int] = []
    if x.name in ("bra", "brx") and not x.operands:
        isa.reject(x, "a label is expected", "FX0711")
    if x.name == "bra":
        out.append(number_of(scope, x.operands[0], labels, x))
    elif x.name == "brx":
        table = x.operands[-1]
        if not isinstance(table, Symbol):
            isa.reject(x, "a list of targets is expected", "FX0711")
        out += [number_of(scope, Symbol(n), labels, x) for n in scope.table(table.name, x)]
    elif x.name in ("ret", "exit", "trap"):
        return [i + 1] if x.guard is not None else []
    if x.name not in ("bra", "brx") or x.guard is not None:
        out.append(i + 1)
    return out


def _latches(successors: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
    """A block of our own for each loop that is closed in several places, by (source, header): there the threads of one round
    meet before the next. The new blocks are numbered on from the last one."""
    rank = {old: new for new, old in enumerate(order(successors))}
    back: dict[int, list[int]] = {}
    for i, found in enumerate(successors):
        for s in set(found):
            if s < len(successors) and rank[s] <= rank[i]:
                back.setdefault(s, []).append(i)
    several = sorted(h for h, sources in back.items() if len(sources) > 1)
    return {(i, h): len(successors) + n for n, h in enumerate(several) for i in back[h]}


def _latch(x: Instruction, header: int, patience: int) -> Block:
    """A block without instructions. `patience`: of the loop that it closes, as `_loop_spins` has it."""

    def end(w: Wave, m: Mask) -> None:
        w.go(header, m.bits)

    return Block(x, [], end, [], {}, 0, after=header, spins=patience > 0, patience=patience)


def _loop_spins(
    runs: list[list[tuple[Instruction, Scope]]], successors: list[list[int]], rank: dict[int, int]
) -> list[int]:
    """For each run that branches back, over blocks that read what other threads may write: how many rounds it may go before
    others run; 0 for other runs."""
    named = Counter(name for run in runs for x, _ in run for name in _REGISTER.findall(x.text))
    reads = [max((_patience(x, named) for x, _ in run), default=0) for run in runs]
    out = []
    for i in range(len(runs)):
        spins = 0
        for s in successors[i]:
            if rank[s] <= rank[i]:
                spins = max([spins, *(reads[j] for j in range(len(runs)) if rank[s] <= rank[j] <= rank[i])])
        out.append(spins)
    return out


def _patience(x: Instruction, named: Mapping[str, int]) -> int:
    """`named`: how often the function names each register."""
    if x.name == "mbarrier":  # a wait that fails may suspend the thread
        return 1 if "try_wait" in x.modifiers or "test_wait" in x.modifiers else 0
    if x.name == "ld" and not any(f in x.modifiers for f in ("volatile", "acquire", "relaxed")):
        return 0
    if x.name == "atom" and all(named[name] == 1 for name in _REGISTER.findall(x.text)[:1]):
        return 0  # nobody looks at what it found
    return PATIENCE if x.name == "ld" or x.name in _SPIN else 0


# ---- steps --------------------------------------------------------------------------------------------------------------


def _step(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    x = form.instruction
    run = _lanewise(opcode, form, scope) if opcode.is_lanewise else _meaning(opcode, form, scope)
    if scope.linker.watches and x.name != "wgmma":
        run = watched(run, form, scope, opcode.is_lanewise)
    guard = scope.guard(x)
    if guard is None:
        return run
    slot, negated = guard

    def guarded(w: Wave, m: Mask) -> None:
        those = w.guard(slot, negated, m)
        if those is not None:
            run(w, those)

    return guarded


def _meaning(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    """What an instruction of the machine does. Its declaration takes operands apart as the document has them; where that
    fails they are not what the instruction takes."""
    try:
        step: Step = opcode.meaning(form, scope)
    except (IndexError, AssertionError, AttributeError, TypeError, ValueError, KeyError) as reason:
        isa.reject(form.instruction, f"these are not the operands it takes ({type(reason).__name__})", "FX0711")
    return step


def _lanewise(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    x = form.instruction
    assert opcode.signature is not None
    result, kinds = opcode.signature(form)
    sources = list(form.sources)
    if len(sources) != len(kinds):
        isa.reject(x, f"{len(kinds)} operands are expected, {len(sources)} are there", "FX0711")
    reads = [scope.read(o, k, x) for o, k in zip(sources, kinds)]
    writes = [scope.write(o, result, x) for o in form.destinations]
    meaning = opcode.meaning(form)
    if opcode.reads_carry or form.has("cc"):
        if scope.frame.carry < 0:
            scope.frame.carry = scope.frame.slot("pred")
        carry = scope.frame.carry
        if opcode.reads_carry:
            reads.append(lambda w: w.registers[carry])
        if form.has("cc"):
            writes.append(register_writer(carry, "pred", np.dtype(bool)))
    if len(writes) > 1:

        def several(w: Wave, m: Mask) -> None:
            for put, value in zip(writes, meaning(*[r(w) for r in reads])):
                put(w, value, m)

        return several
    write = writes[0]
    if len(reads) == 2:
        first, second = reads
        return lambda w, m: write(w, meaning(first(w), second(w)), m)
    if len(reads) == 1:
        (only,) = reads
        return lambda w, m: write(w, meaning(only(w)), m)
    if len(reads) == 3:
        a, b, c = reads
        return lambda w, m: write(w, meaning(a(w), b(w), c(w)), m)
    return lambda w, m: write(w, meaning(*[r(w) for r in reads]), m)
