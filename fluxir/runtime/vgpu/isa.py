"""What an instruction is: one declaration says its name, the modifiers and types it takes, its class for the counters, and its
meaning. The declarations are in `instructions/`; both executors and the documentation read them here.

A *lanewise* instruction is a function of arrays, one element a thread, that knows nothing else. Every other instruction is a
function of the executor's state (`wave.Wave`) and of the threads that execute it.

The meaning of a lanewise instruction is given numpy arrays (or numpy scalars, for immediates) of exactly the types that
`signature` names, one for each source register: operands in braces are flattened. It returns the result; a tuple of results,
all of the result's type, where the destination is a pair `p|q` or a vector `{a, b}`. The condition code register is one more
predicate: the last argument where the opcode `reads_carry`, the last result where the form has `.cc`. A result narrower than its
register is widened by the executor, with the sign where its type is signed.
"""

from __future__ import annotations

import functools
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from fluxir.errors import Location, error

from .ptx import Instruction, Operand, Pair, Vector

__all__ = ["Form", "Opcode", "Signature", "flat", "form_of", "lanewise", "machine", "opcodes", "reject"]

_TYPE = re.compile(
    r"(?:[busf]\d+(?:x[248])?|bf16(?:x2)?|tf32(?:x2)?|pred|e[45]m[23](?:x[24])?|e2m[13](?:x[24])?|e3m2(?:x[24])?|ue8m0x2|s2f6x2)$"
)

Signature = tuple[str, Sequence[str]]  # the type of every result, the types of the operands


def flat(operands: Sequence[Operand]) -> Iterator[Operand]:
    """The operands with vectors and pairs taken apart: as many as a meaning has arguments (or results)."""
    for x in operands:
        if isinstance(x, Vector):
            yield from flat(x.items)
        elif isinstance(x, Pair):
            yield from flat((x.first, x.second))
        else:
            yield x


@dataclass(frozen=True)
class Form:
    """An instruction's modifiers sorted: `types` in order of appearance, the rest in `flags`."""

    instruction: Instruction
    types: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def type(self) -> str:
        """The last type: the one of the operands."""
        if not self.types:
            reject(self.instruction, "it names no type")
        return self.types[-1]

    @property
    def destinations(self) -> tuple[Operand, ...]:
        """Where the results go: one operand, two for `p|q`, as many as a vector has elements."""
        return tuple(flat(self.instruction.operands[:1]))

    @property
    def sources(self) -> tuple[Operand, ...]:
        """The source operands of a lanewise instruction, vectors flattened."""
        return tuple(flat(self.instruction.operands[1:]))

    def reject(self, why: str) -> NoReturn:
        """FX0710: the instruction is not executed, for the reason `why`."""
        reject(self.instruction, why)

    def has(self, flag: str) -> bool:
        return flag in self.flags

    def one_of(self, *flags: str, default: str = "") -> str:
        """Which of the modifiers is there."""
        return next((f for f in self.flags if f in flags), default)

    @property
    def rounding(self) -> str:
        """`rn`, `rz`, `rm` or `rp`; `rn` where none is written."""
        return self.one_of("rn", "rz", "rm", "rp", default="rn")


@dataclass(frozen=True)
class Opcode:
    """One instruction's declaration. `group`: its class for the counters, by form. `signature(form)`: types of the result and
    of the operands of a lanewise instruction. `meaning(form)`: its function. `forms`: everything a lanewise instruction may
    be written as; empty where `types` and `flags` go together freely. `sync`: "warp" where the threads of a warp (or those its
    mask names) execute it together, "end" where it ends a basic block. `section`: of the PTX ISA document."""

    name: str
    group: Callable[[Form], str]
    types: frozenset[str]
    flags: frozenset[str]
    meaning: Callable[..., Any]
    signature: Callable[[Form], Signature] | None = None
    sync: str = ""
    section: str = ""
    doc: str = ""
    forms: tuple[str, ...] = ()
    reads_carry: bool = False

    @property
    def is_lanewise(self) -> bool:
        return self.signature is not None


# An instruction's name on integers and on floats is two declarations, told apart by their forms.
_OPCODES: dict[str, list[Opcode]] = {}
_FORMS: dict[tuple[str, frozenset[str], tuple[str, ...]], Opcode] = {}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _group(group: str | Callable[[Form], str]) -> Callable[[Form], str]:
    return group if callable(group) else lambda form: group


def lanewise(
    forms: str,
    group: str | Callable[[Form], str],
    operands: int = 2,
    signature: Callable[[Form], Signature] | None = None,
    reads_carry: bool = False,
    section: str = "",
) -> Callable[[Callable[[Form], Callable[..., Any]]], Callable[[Form], Callable[..., Any]]]:
    """Declare a lanewise instruction over the decorated function, which takes the form and returns the function of the
    operands. `forms` says how it is written, as the PTX ISA does: `add[.{rn rz}][.ftz].f32` has optional parts in brackets and
    alternatives in braces. Without `signature` the result and all `operands` have the form's type."""

    def same(form: Form) -> Signature:
        return form.type, (form.type,) * operands

    def declare(meaning: Callable[[Form], Callable[..., Any]]) -> Callable[[Form], Callable[..., Any]]:
        written = tuple(dict.fromkeys(form for line in _SYNTAX.findall(forms) for form in _expand(line)))
        modifiers = {m for form in written for m in form.split(".")[1:]}
        types = frozenset(m for m in modifiers if _TYPE.match(m))
        opcode = Opcode(
            written[0].partition(".")[0],
            _group(group),
            types,
            frozenset(modifiers - types),
            meaning,
            signature or same,
            section=section,
            doc=_doc(meaning),
            forms=written,
            reads_carry=reads_carry,
        )
        for form in written:
            name, *rest = form.split(".")
            if _FORMS.setdefault(_key(name, rest), opcode) is not opcode or name != opcode.name:
                raise ValueError(f"the instruction {form} is declared twice")
        _add(opcode)
        return meaning

    return declare


_SYNTAX = re.compile(r"(?:\{[^}]*\}|\S)+")
_CHOICE = re.compile(r"\{([^{}\[\]]*)\}|\[([^{}\[\]]*)\]")


def _expand(syntax: str) -> list[str]:
    """`a[.x].{p q}` as `a.p`, `a.q`, `a.x.p`, `a.x.q`."""
    found = _CHOICE.search(syntax)
    if found is None:
        return [syntax]
    choices = found[1].split() if found[1] is not None else ["", found[2]]
    return [form for c in choices for form in _expand(syntax[: found.start()] + c + syntax[found.end() :])]


def _key(name: str, modifiers: Sequence[str]) -> tuple[str, frozenset[str], tuple[str, ...]]:
    """What tells forms apart: the order of types matters, that of other modifiers does not."""
    types = tuple(m for m in modifiers if _TYPE.match(m))
    return name, frozenset(modifiers) - frozenset(types), types


def machine(
    name: str,
    group: str | Callable[[Form], str],
    types: str = "",
    flags: str = "",
    sync: str = "",
    section: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an instruction that works on the machine's state: the decorated function takes (form, scope) when the code is
    linked and returns a function of (wave, mask)."""

    def declare(meaning: Callable[..., Any]) -> Callable[..., Any]:
        if any(not o.forms for o in _OPCODES.get(name, ())):
            raise ValueError(f"the instruction {name} is declared twice")
        _add(Opcode(name, _group(group), _names(types), _names(flags), meaning, None, sync, section, _doc(meaning)))
        return meaning

    return declare


def _doc(meaning: Callable[..., Any]) -> str:
    return (meaning.__doc__ or "").strip()


def _add(opcode: Opcode) -> None:
    _OPCODES.setdefault(opcode.name, []).append(opcode)


@functools.cache
def opcodes() -> dict[str, tuple[Opcode, ...]]:
    """Every declared instruction: its declarations by name. Each module of `instructions/` is a family of them."""
    families = import_module("fluxir.runtime.vgpu.instructions")
    for family in pkgutil.iter_modules(families.__path__):
        import_module(f"{families.__name__}.{family.name}")
    return {name: tuple(declared) for name, declared in _OPCODES.items()}


def reject(instruction: Instruction, why: str, code: str = "FX0710") -> NoReturn:
    """FX0710: the instruction is not executed, for the reason `why`."""
    labels = [(instruction.location, "from this line")] if instruction.location else []
    raise error(
        code,
        f"line {instruction.line} of the PTX: `{instruction.text}`: {why}",
        loc=Location("<ptx>", instruction.line),
        labels=labels,
    )


def form_of(instruction: Instruction) -> tuple[Opcode, Form]:
    """The declaration of an instruction and its sorted modifiers. FX0710 for a name, modifier or type that is not declared."""
    declared = opcodes().get(instruction.name)
    if declared is None:
        reject(instruction, f"the virtual GPU has no instruction `{instruction.name}`")
    types, flags, opcode = _sorted(instruction.name, instruction.modifiers)
    form = Form(instruction, types, flags)
    if opcode is not None:
        wanted = len(opcode.signature(form)[1]) if opcode.signature else 0
        if len(form.sources) != wanted:
            reject(instruction, f"it has {len(form.sources)} source operands, not {wanted}")
        return opcode, form
    known = frozenset().union(*(o.flags for o in declared))
    for m in flags:
        if m not in known:
            reject(instruction, f"the modifier `.{m}` is not known")
    for t in types:
        if not any(t in o.types for o in declared):
            reject(instruction, f"`{instruction.name}` on the type `.{t}` is not executed")
    whole = [o for o in declared if not o.forms]
    if not whole:
        reject(instruction, f"`{instruction.name}` does not take these modifiers and types together")
    return whole[0], form


@functools.cache
def _sorted(name: str, modifiers: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], Opcode | None]:
    """Types, other modifiers, and the declaration that lists the form, if one does."""
    declared = opcodes()[name]
    types = tuple(m for m in modifiers if _is_type(m, declared))
    flags = tuple(m for m in modifiers if not _is_type(m, declared))
    return types, flags, _FORMS.get((name, frozenset(flags), types))


def _is_type(modifier: str, declared: Sequence[Opcode]) -> bool:
    return _TYPE.match(modifier) is not None and not any(modifier in o.flags for o in declared)
