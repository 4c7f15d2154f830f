"""The lanewise instructions of the virtual GPU: every form that is declared, against `tests/vgpu_reference.py`, on edge values
and seeded random ones; their error messages; and that one call takes scalars as well as arrays."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fluxir.runtime.vgpu import isa
from fluxir.runtime.vgpu.isa import Form, Opcode, opcodes
from fluxir.runtime.vgpu.ptx import Immediate, Instruction, Operand, Pair, Register, Vector
from fluxir.runtime.vgpu.values import dtype
from tests import vgpu_reference as reference

OPCODES = [o for declared in opcodes().values() for o in declared if o.is_lanewise]


# ---- operands
def edges(kind: str) -> list[int]:
    """Bits that are likely to be treated wrongly."""
    n = reference.width(kind)
    if kind == "pred":
        return [0, 1]
    if reference.is_float(kind):
        p, _, e = reference.PRECISION[kind]
        one, sign, inf = ((1 << e - 1) - 1) << p - 1, 1 << n - 1, ((1 << e) - 1) << p - 1
        positive = [0, 1, (1 << p - 1) - 1, 1 << p - 1, (1 << p - 1) + 1, one, one + 1, one - 1, one + (1 << p - 2)]
        positive += [one + (2 << p - 1), inf - 1, inf - 2, inf, inf + 1, inf | (1 << p - 2), inf | ((1 << p - 1) - 1)]
        positive += [one + (5 << p - 1) + 7, one - (9 << p - 1 if e > 5 else 3 << p - 1) + 5]
        return positive + [x | sign for x in positive]
    top = (1 << n) - 1
    return sorted(
        {
            x & top
            for x in (
                0,
                1,
                2,
                3,
                7,
                8,
                15,
                16,
                31,
                32,
                33,
                63,
                64,
                255,
                top,
                top - 1,
                top >> 1,
                (top >> 1) + 1,
                top // 3,
            )
        }
    )


def drawn(kind: str, rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Random bits of a type: uniform, floats near one another in size and short ones too; and the edges."""
    n = reference.width(kind)
    if kind == "pred":
        return rng.integers(0, 2, count).astype(bool)
    if kind.endswith("x2"):
        half = reference.element(kind)
        word = np.dtype(f"u{n // 8}")
        low, high = (drawn(half, rng, count).astype(word) for _ in range(2))
        return low | high << word.type(n // 2)
    word = np.dtype(f"u{n // 8}")
    bits = (
        rng.integers(0, 1 << n, count, dtype=np.uint64, endpoint=False)
        if n < 64
        else rng.integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True)
    )
    bits = bits.astype(word)
    pick = rng.integers(0, 5, count)
    if reference.is_float(kind):
        p, _, e = reference.PRECISION[kind]
        near = ((1 << e - 1) - 1 + rng.integers(-3, 4, count)) << p - 1  # exponents around zero
        fraction = bits & word.type((1 << p - 1) - 1) | (bits & word.type(1 << n - 1))
        bits = np.where(pick >= 2, near.astype(word) | fraction, bits)
        bits = np.where(
            pick == 3, bits & ~word.type((1 << p - 4) - 1), bits
        )  # short fractions: sums and products are exact or halfway
    else:
        bits = np.where(pick == 3, bits & word.type(63), bits)
    edge = np.array(edges(kind), np.uint64).astype(word)
    return np.where(pick == 0, edge[rng.integers(0, len(edge), count)], bits)


def operand_arrays(kinds: tuple[str, ...], rng: np.random.Generator, count: int) -> list[np.ndarray[Any, Any]]:
    """Arrays of the types as numpy computes them. Two operands also meet at all pairs of a few edges."""
    arrays = [drawn(k, rng, count) for k in kinds]
    if len(kinds) == 1 and not kinds[0].endswith("x2"):
        edge = np.array(edges(kinds[0]), np.uint64).astype(arrays[0].dtype)
        arrays[0] = np.concatenate([edge, arrays[0]])
    return [a if k == "pred" else a.view(dtype(k)) for a, k in zip(arrays, kinds)]


def bits_of(x: Any) -> Any:
    x = np.asarray(x)
    return x if x.dtype == np.bool_ else x.view(f"u{x.dtype.itemsize}")


# ---- forms
_D = Register("d")


def instruction(text: str, sources: int, destination: Operand = _D) -> Instruction:
    name, *modifiers = text.split(".")
    operands = (destination, *(Register(f"s{i}") for i in range(sources)))
    return Instruction(name, tuple(modifiers), operands, None, 1, text)


def variants(opcode: Opcode, text: str) -> Iterator[Form]:
    """The ways to write a form's operands."""
    name, *modifiers = text.split(".")
    types = tuple(m for m in modifiers if isa._TYPE.match(m) and m not in opcode.flags)
    flags = tuple(m for m in modifiers if m not in types)
    if name == "mov" and types[-1] in ("b32", "b64"):
        for parts in (2, 4):
            vector = Vector(tuple(Register(f"v{i}") for i in range(parts)))
            yield Form(Instruction(name, tuple(modifiers), (Register("d"), vector), None, 1, text), types, flags)
            yield Form(Instruction(name, tuple(modifiers), (vector, Register("s")), None, 1, text), types, flags)
    if name == "lop3":
        for table in (0x00, 0xFF, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1D):
            operands = (Register("d"), Register("a"), Register("b"), Register("c"), Immediate(table))
            yield Form(Instruction(name, tuple(modifiers), operands, None, 1, text), types, flags)
        return
    if name in ("min", "max") and types == ("f32",) and "xorsign" not in flags:
        yield Form(instruction(text, 3), types, flags)
    if name in ("min", "max") and "abs" in flags and "xorsign" not in flags:
        return
    if name == "setp":
        pair = Pair(Register("p"), Register("q"))
        count = 2 + any(f in ("and", "or", "xor") for f in flags)
        yield Form(instruction(text, count, pair), types, flags)
        if types[-1].endswith("x2"):
            return
    probe = Form(instruction(text, 1), types, flags)
    assert opcode.signature is not None
    yield Form(instruction(text, len(opcode.signature(probe)[1])), types, flags)


def check(opcode: Opcode, form: Form, count: int) -> int:
    found, same = isa.form_of(form.instruction)
    assert found is opcode and same.types == form.types and set(same.flags) == set(form.flags)
    assert opcode.signature is not None and opcode.group(form)
    result, signature = opcode.signature(form)
    kinds = tuple(signature) + ("pred",) * opcode.reads_carry
    rng = np.random.default_rng(zlib.crc32(form.instruction.text.encode()))
    arrays = operand_arrays(kinds, rng, count)
    if form.instruction.name == "lop3":
        arrays[3] = np.full(count, form.sources[3].value, np.uint32)  # type: ignore[union-attr]
    before = [a.copy() for a in arrays]
    meaning = opcode.meaning(form)
    with np.errstate(all="ignore"):
        got = meaning(*arrays)
        scalars = meaning(*(a[-1] for a in arrays))
        mixed = meaning(arrays[0][-1], *(a for a in arrays[1:])) if len(arrays) > 1 else None
    for a, b in zip(arrays, before):
        assert np.array_equal(bits_of(a), bits_of(b)), "an operand was written"
    results = got if isinstance(got, tuple) else (got,)
    assert len(results) == len(form.destinations) + form.has("cc")
    for i, r in enumerate(results):
        kind = "pred" if i == len(form.destinations) else result
        assert r.dtype == dtype(kind), f"{form.instruction.text}: {r.dtype} for {kind}"
        single = scalars[i] if isinstance(got, tuple) else scalars
        assert single.dtype == r.dtype and single.shape == () and bits_of(single) == bits_of(r)[-1], (
            f"{form.instruction.text}: scalars differ"
        )
        if mixed is not None:
            both = mixed[i] if isinstance(got, tuple) else mixed
            assert bits_of(both)[-1] == bits_of(r)[-1], "a scalar and arrays differ"
    columns = [bits_of(a).tolist() for a in arrays]
    outputs = [bits_of(r).tolist() for r in results]
    for lane in range(len(columns[0])):
        values = tuple(value_of(form, i, c[lane], k) for i, (c, k) in enumerate(zip(columns, kinds)))
        want = reference.expected(form, kinds, result, values)
        wants = want if isinstance(want, tuple) else (want,)
        have = [o[lane] for o in outputs]
        if len(wants) > len(have):  # the two halves of a packed result, each within an error
            have = [have[0] & 0xFFFF, have[0] >> 16]
            result_kind = reference.element(result)
        else:
            result_kind = result
        for i, (bits, w) in enumerate(zip(have, wants, strict=True)):
            kind = "pred" if i >= len(form.destinations) and form.has("cc") else result_kind
            assert reference.agrees(int(bits), w, kind, form.has("ftz")), (
                f"{form.instruction.text} {[hex(int(c[lane])) for c in columns]} gives {int(bits):#x}, not {shown(w, kind)}"
            )
    return len(columns[0])


def value_of(form: Form, index: int, bits: int, kind: str) -> Any:
    """An operand as the reference takes it: as bits where a NaN goes through unchanged."""
    if form.instruction.name in ("selp", "mov") or (form.instruction.name == "slct" and index < 2):
        return reference.Bits(bits) if reference.is_float(kind) else reference.from_bits(bits, kind)
    return reference.operand(form, bits, kind)


def shown(want: Any, kind: str) -> str:
    if isinstance(want, reference.Approximate):
        return "NaN" if want.low is None else f"between {float(want.low)!r} and {float(want.high)!r}"
    return f"{reference.to_bits(want, kind):#x}"


def label(opcode: Opcode) -> str:
    return f"{opcode.name}-{opcode.meaning.__module__.rpartition('.')[2]}-{opcode.meaning.__name__}"


@pytest.mark.parametrize("opcode", OPCODES, ids=label)
def test_every_form(opcode: Opcode) -> None:
    many = len(opcode.forms) > 150
    for text in opcode.forms:
        for form in variants(opcode, text):
            check(opcode, form, 6 if many else 40)
