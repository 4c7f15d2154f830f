"""The lanewise instructions of the virtual GPU: every form that is declared, against `tests/vgpu_reference.py`, on edge values
and seeded random ones; their error messages; and that one call takes scalars as well as arrays."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from fluxir.runtime.vgpu import approximate, isa
from fluxir.runtime.vgpu.isa import Form, Opcode, opcodes
from fluxir.runtime.vgpu.parser import parse
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
        positive += [
            one + (2 << p - 1),
            inf - 1,
            inf - 2,
            inf,
            inf + 1,
            inf - (2 << p - 1) + 5,
            inf | (1 << p - 2),
            inf | ((1 << p - 1) - 1),
            0x7FF7,
        ]
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


@functools.cache
def operand_arrays(kinds: tuple[str, ...], seed: int, count: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Arrays of the types as numpy computes them, read-only: a meaning that writes to its operands fails."""
    rng = np.random.default_rng(seed)
    arrays = [drawn(k, rng, count) for k in kinds]
    if len(kinds) == 1 and not kinds[0].endswith("x2"):
        edge = np.array(edges(kinds[0]), np.uint64).astype(arrays[0].dtype)
        arrays[0] = np.concatenate([edge, arrays[0]])
    if len(kinds) > 1 and kinds[0] == kinds[1] and kinds[0] != "pred":
        arrays[1][1::9] = arrays[0][1::9]  # equal operands
        arrays[1][2::9] = ~arrays[0][2::9]  # integers whose sum is all ones: a carry runs through
    for a in arrays:
        a.setflags(write=False)
    return tuple(a if k == "pred" else a.view(dtype(k)) for a, k in zip(arrays, kinds))


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


def check(opcode: Opcode, form: Form, count: int, scalars: bool = True) -> int:
    found, same = isa.form_of(form.instruction)
    assert found is opcode and same.types == form.types and set(same.flags) == set(form.flags)
    assert opcode.signature is not None and opcode.group(form)
    result, signature = opcode.signature(form)
    kinds = tuple(signature) + ("pred",) * opcode.reads_carry
    arrays = list(operand_arrays(kinds, zlib.crc32(form.instruction.text.encode()) % 16, count))
    if form.instruction.name == "lop3":
        arrays[3] = np.full(count, form.sources[3].value, np.uint32)  # type: ignore[union-attr]
    meaning = opcode.meaning(form)
    with np.errstate(all="ignore"):
        got = meaning(*arrays)
        alone = {i: meaning(*(a[i] for a in arrays)) for i in (*range(0, count, 37), -1) if scalars}
        mixed = {
            k: meaning(*(a[-1] if i == k else a for i, a in enumerate(arrays)))
            for k in range(1, len(arrays))
            if scalars
        }
    results = got if isinstance(got, tuple) else (got,)
    assert len(results) == len(form.destinations) + form.has("cc")
    for i, r in enumerate(results):
        kind = "pred" if i == len(form.destinations) else result
        assert r.dtype == dtype(kind), f"{form.instruction.text}: {r.dtype} for {kind}"
        for lane, one in alone.items():
            single = one[i] if isinstance(got, tuple) else one
            assert single.dtype == r.dtype and single.shape == (), f"{form.instruction.text} of scalars"
            assert bits_of(single) == bits_of(r)[lane], f"{form.instruction.text}: scalars differ"
        for some in mixed.values():
            both = some[i] if isinstance(got, tuple) else some
            assert bits_of(both)[-1] == bits_of(r)[-1], f"{form.instruction.text}: a scalar and arrays differ"
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
    for number, text in enumerate(opcode.forms):
        for form in variants(opcode, text):
            check(
                opcode, form, max(4, min(250, 1000 // len(opcode.forms))), len(opcode.forms) < 1000 or number % 7 == 0
            )


# ---- rounding where it is hard
MODES = ("rn", "rz", "rm", "rp")


def hard_products(kind: str, rng: np.random.Generator, count: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Factors whose product lies halfway between two numbers of the type, or is one, and summands that are tiny beside it, cancel
    it, or lie at the ends of the range: what an arithmetic of twice the width rounds twice."""
    p, emin, _ = reference.PRECISION[kind]
    low, high = (p + 1) // 2, p + 1 - (p + 1) // 2
    a = (rng.integers(1 << low - 1, 1 << low, count) | 1).astype(np.float64)
    b = (rng.integers(1 << high - 1, 1 << high, count) | 1).astype(np.float64)
    scale = rng.integers(emin // 2 - 3, -emin // 2 - p, count)
    product = np.ldexp(a * b, np.minimum(scale, 900))  # inexact for f64: only its size matters
    tiny = np.ldexp(
        1.0 + rng.integers(0, 3, count), np.maximum(np.frexp(product)[1] - rng.integers(p, 3 * p, count), emin - p + 2)
    )
    whole = rounded_to(product, kind)
    ends = np.ldexp(np.array([1.0, 3.0, 5.0])[rng.integers(0, 3, count)], emin - p + 2)
    c = np.choose(rng.integers(0, 5, count), [tiny, -tiny, -whole, ends, whole * 0.5])
    signs = np.where(rng.integers(0, 2, count) == 0, -1.0, 1.0)
    a, b, c = np.ldexp(a, scale // 2) * signs, np.ldexp(b, scale - scale // 2), c * signs
    # (1 + d) * (1 - d) is half a unit of the summand, less a little that no arithmetic of twice the width holds
    d = np.ldexp(1.0, -rng.integers(p // 2, p, count))
    summand = rng.integers(1 << p - 1, 1 << p, count).astype(np.float64) * 2.0
    at = rng.integers(emin // 4, -emin // 4, count)
    subnormal = rng.integers(0, 2, count) == 0
    at = np.where(subnormal, emin - p, at)
    summand = np.where(subnormal, np.floor(summand * rng.uniform(0, 0.5, count) / 2) * 2, summand)
    near = np.arange(count) % 2 == 0
    a = np.where(near, np.ldexp(1 + d, at // 2), a)
    b = np.where(near, np.ldexp((1 - d) * signs, at - at // 2), b)
    c = np.where(near, np.ldexp(summand, at), c)
    return tuple(encoded(x, kind) for x in (a, b, c))


def rounded_to(x: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        return {"f16": np.float16, "f32": np.float32, "f64": np.float64}.get(kind, np.float32)(x).astype(np.float64)


def encoded(x: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        if kind == "bf16":
            return (x.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return x.astype(dtype(kind))


def meaning_of(text: str, sources: int) -> Any:
    opcode, form = isa.form_of(instruction(text, sources))
    return opcode.meaning(form)


def compare_operation(text: str, f: Any, kind: str, mode: str, arrays: tuple[np.ndarray[Any, Any], ...]) -> None:
    f_arrays = meaning_of(text, len(arrays))
    with np.errstate(all="ignore"):
        got = bits_of(f_arrays(*arrays)).tolist()
        for lane in range(0, min(len(got), 600), 4):  # alone, so that no other lane makes it take the slow way
            assert bits_of(f_arrays(*(a[lane : lane + 1] for a in arrays)))[0] == got[lane], text
    columns = [bits_of(a).tolist() for a in arrays]
    for lane, bits in enumerate(got):
        values = [reference.from_bits(c[lane], kind) for c in columns]
        want = reference.to_bits(f(*values, kind, mode), kind)
        assert bits == want, f"{text} {values} gives {bits:#x}, not {want:#x}"


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_fma_is_rounded_once(kind: str) -> None:
    arrays = hard_products(kind, np.random.default_rng(7), 1000)
    for mode in MODES if kind in ("f32", "f64") else ("rn",):
        compare_operation(f"fma.{mode}.{kind}", reference.fma_of, kind, mode, arrays)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_sums_products_quotients_and_roots_are_rounded_once(kind: str, mode: str) -> None:
    rng = np.random.default_rng(8)
    a, b, c = hard_products(kind, rng, 160)
    random = [drawn(kind, rng, 160).view(dtype(kind)) for _ in range(2)]
    with np.errstate(all="ignore"):
        square = a * a
    for x, y in ((a, b), (a, c), tuple(random), (square, a)):
        compare_operation(f"add.{mode}.{kind}", reference.sum_of, kind, mode, (x, y))
        compare_operation(f"mul.{mode}.{kind}", reference.product_of, kind, mode, (x, y))
        compare_operation(f"div.{mode}.{kind}", reference.quotient_of, kind, mode, (x, y))
    for x in (square, random[0]):
        compare_operation(f"sqrt.{mode}.{kind}", reference.root_of, kind, mode, (np.abs(x),))


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_fma_is_rounded_once_many_times(kind: str) -> None:
    rng = np.random.default_rng(9)
    for arrays in (
        hard_products(kind, rng, 40_000),
        tuple(drawn(kind, rng, 20_000).view(dtype(kind)) for _ in range(3)),
    ):
        for mode in MODES if kind in ("f32", "f64") else ("rn",):
            compare_operation(f"fma.{mode}.{kind}", reference.fma_of, kind, mode, arrays)


@pytest.mark.deep
@pytest.mark.parametrize("opcode", OPCODES, ids=label)
def test_every_form_on_many_operands(opcode: Opcode) -> None:
    for text in opcode.forms:
        for form in variants(opcode, text):
            check(opcode, form, max(20, min(1000, 20_000 // len(opcode.forms))))


@pytest.mark.parametrize("source", ["f16", "bf16"])
@pytest.mark.parametrize("kind", list(reference.NARROW))
def test_all_codes_of_narrow_floats(kind: str, source: str) -> None:
    """Every f16 and bf16 becomes the code that ml_dtypes has for it, and every code the f16 of its value."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        x = (
            every.view(np.float16).astype(np.float32)
            if source == "f16"
            else (every.astype(np.uint32) << np.uint32(16)).view(np.float32)
        )
        words = every.astype(np.uint32) << np.uint32(16)
        got = meaning_of(f"cvt.rn.satfinite.{kind}x2.{source}x2", 1)(words) >> (4 if kind == "e2m1" else 8)
        values = np.array(reference.codes(kind))
        top = float(np.nanmax(values[np.isfinite(values)]))
        want = np.clip(x, -top, top).astype(reference.NARROW[kind]).view(np.uint8)
        want = np.where(np.isnan(x), 0x7F if reference.SIZE[kind] == 8 else reference.ladder(kind)[-1][1], want)
        assert np.array_equal(got, want)
        codes = np.arange(1 << reference.SIZE[kind])
        back = meaning_of(f"cvt.rn.f16x2.{kind}x2", 1)(
            codes.astype(np.uint8 if kind == "e2m1" else np.uint16)
        ) & np.uint32(0xFFFF)
        assert np.array_equal(back.astype(np.uint16).view(np.float16).astype(np.float64), values, equal_nan=True)


@pytest.mark.parametrize(
    ("rest", "random", "code"),
    [
        (0, 0xFFFF, 0x38),
        (1, 0xFFFE, 0x38),
        (1, 0xFFFF, 0x39),
        (0x8000, 0x7FFF, 0x38),
        (0x8000, 0x8000, 0x39),
        (0xFFFF, 0, 0x38),
        (0xFFFF, 1, 0x39),
    ],
)
def test_stochastic_rounding_goes_up_where_the_sum_carries(rest: int, random: int, code: int) -> None:
    """1 and `rest` 65536ths of the distance to the next e4m3. The first of two numbers takes its random bits in reverse."""
    x = np.array([0x3F800000 | rest << 4], np.uint32).view(np.float32)
    f = meaning_of_vector("cvt.rs.satfinite.e4m3x4.f32", 4, 1)
    reverse = reference.reversed_bits(random)
    assert int(f(x, x, x, x, np.array([random << 16 | random], np.uint32))[0]) & 0x00FF00FF == code << 16 | code
    assert int(f(x, x, x, x, np.array([reverse << 16 | reverse], np.uint32))[0]) & 0xFF00FF00 == code << 24 | code << 8


def meaning_of_vector(text: str, items: int, more: int) -> Any:
    name, *modifiers = text.split(".")
    sources = (Vector(tuple(Register(f"v{i}") for i in range(items))), *(Register(f"s{i}") for i in range(more)))
    opcode, form = isa.form_of(Instruction(name, tuple(modifiers), (_D, *sources), None, 1, text))
    return opcode.meaning(form)


# ---- approximations
APPROXIMATE = ("rcp", "sqrt", "rsqrt", "lg2", "ex2", "sin", "cos", "tanh")


@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_error_of_approximations_hangs_on_the_seed(name: str) -> None:
    """Other seeds give other results within the bounds, one seed the same; None gives the nearest number."""
    _, form = isa.form_of(instruction(f"{name}.approx.f32", 1))
    f = meaning_of(f"{name}.approx.f32", 1)
    x = np.random.default_rng(3).uniform(0.3, 5, 2000).astype(np.float32)
    runs = []
    for seed in (1, 1, 2):
        with approximate.seeded(seed):
            runs.append(bits_of(f(x)))
            for value, bits in list(zip(x.tolist(), runs[-1].tolist()))[:150]:
                assert reference.agrees(bits, reference.approximate(form, "f32", value), "f32")
    assert np.array_equal(runs[0], runs[1])
    assert np.count_nonzero(runs[0] != runs[2]) > 300
    with approximate.seeded(None):
        exact = {"rcp": np.reciprocal, "rsqrt": lambda v: 1 / np.sqrt(v), "lg2": np.log2, "ex2": np.exp2}.get(
            name
        ) or getattr(np, name)
        assert np.array_equal(f(x), exact(x.astype(np.float64)).astype(np.float32))


# ---- the mechanism
def test_large_arrays_are_the_same_as_small_ones() -> None:
    rng = np.random.default_rng(4)
    for text, kinds in (
        ("fma.rn.f32", ("f32",) * 3),
        ("cvt.rz.f16x2.f32", ("f32", "f32")),
        ("div.s32", ("s32", "s32")),
        ("fma.rn.bf16x2", ("bf16x2",) * 3),
    ):
        arrays = [drawn(k, rng, 20_000).view(dtype(k)) for k in kinds]
        f = meaning_of(text, len(kinds))
        with np.errstate(all="ignore"):
            whole = bits_of(f(*arrays))
            parts = np.concatenate([bits_of(f(*(a[i : i + 1000] for a in arrays))) for i in range(0, 20_000, 1000)])
            one = bits_of(f(arrays[0][5], *arrays[1:]))
            again = bits_of(f(np.full(20_000, arrays[0][5]), *arrays[1:]))
        assert np.array_equal(whole, parts) and np.array_equal(one, again), text


def test_every_form_is_declared_once_and_described() -> None:
    forms = [isa._key(*(lambda n, *m: (n, m))(*text.split("."))) for o in OPCODES for text in o.forms]
    assert len(forms) == len(set(forms)) > 5000
    for o in OPCODES:
        assert o.doc and o.section.startswith("9.7."), o.name


def first_instruction(line: str) -> Instruction:
    text = f".version 8.6\n.target sm_90\n.address_size 64\n.entry k() {{ .reg .pred %p<4>; .reg .b32 %r<9>; .reg .f32 %f<9>;\n{line}\n}}"
    body = parse(text).functions["k"].body
    assert body
    return next(x for x in body if isinstance(x, Instruction))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("addd.s32 %r1, %r2, %r3;", "the virtual GPU has no instruction `addd`"),
        ("add.fast.s32 %r1, %r2, %r3;", "the modifier `.fast` is not known"),
        ("add.b32 %r1, %r2, %r3;", "`add` on the type `.b32` is not executed"),
        ("add.sat.u32 %r1, %r2, %r3;", "`add` does not take these modifiers and types together"),
        ("add.s32 %r1, %r2;", "it has 1 source operands, not 2"),
        ("setp.lt.f16x2 %p1, %r2, %r3;", "a comparison of packed numbers has two results, `p|q`"),
        ("lop3.b32 %r1, %r2, %r3, %r4, %r5;", "the table of lop3 is a constant"),
    ],
)
def test_what_is_not_executed_is_said(line: str, message: str) -> None:
    x = first_instruction(line)
    with pytest.raises(FluxError) as caught:
        opcode, form = isa.form_of(x)
        opcode.meaning(form)
    assert caught.value.code == "FX0710" and message in str(caught.value) and "line 5" in str(caught.value)


def test_the_order_of_modifiers_does_not_matter() -> None:
    opcode, form = isa.form_of(first_instruction("fma.ftz.sat.rn.f32 %f1, %f2, %f3, %f4;"))
    assert opcode.name == "fma" and form.rounding == "rn" and form.has("ftz")


def test_directives_may_be_written_together() -> None:
    """cuda_fp16.h writes `.reg.b16 x;`."""
    _, form = isa.form_of(first_instruction("{.reg.b16 x, y; mul.f16 x, y, y;}"))
    assert form.type == "f16"


def test_operands_in_braces_are_flattened() -> None:
    x = first_instruction("cvt.rs.satfinite.e4m3x4.f32 %r1, {%f1, %f2, %f3, %f4}, %r2;")
    _, form = isa.form_of(x)
    assert [getattr(o, "name", "") for o in form.sources] == ["%f1", "%f2", "%f3", "%f4", "%r2"]


def test_the_class_of_instructions_for_the_counters() -> None:
    for line, group in (
        ("add.s32 %r1, %r2, %r3;", "int"),
        ("add.f32 %f1, %f2, %f3;", "float32"),
        ("add.f16x2 %r1, %r2, %r3;", "float16"),
        ("ex2.approx.f32 %f1, %f2;", "special"),
        ("and.b32 %r1, %r2, %r3;", "logic"),
        ("cvt.rn.f32.s32 %f1, %r2;", "convert"),
        ("mov.b32 %r1, %r2;", "move"),
        ("selp.b32 %r1, %r2, %r3, %p1;", "compare"),
    ):
        opcode, form = isa.form_of(first_instruction(line))
        assert opcode.group(form) == group


@pytest.mark.parametrize(("op", "combine"), [("or", np.logical_or), ("and", np.logical_and)])
def test_lop3_tests_its_result(op: str, combine: np.ufunc) -> None:
    """`d|p`, and `_|p` where nobody wants the bits: p = (a & b | c != 0) op q, with q odd threads."""
    gpu = vgpu.Device("sm_90")
    text = f""".version 8.2
.target sm_90
.address_size 64
.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)
{{
  .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [k_param_0]; ld.param.u64 %rd2, [k_param_1];
  mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
  ld.global.u32 %r2, [%rd4];
  and.b32 %r3, %r1, 1; setp.ne.u32 %p1, %r3, 0;
  lop3.{op}.b32 %r4|%p2, %r2, 6, 0, 0xEA, %p1;
  lop3.{op}.b32 _|%p3, %r2, 6, 0, 0xEA, !%p1;
  selp.u32 %r5, 256, 0, %p2; or.b32 %r4, %r4, %r5; selp.u32 %r5, 512, 0, %p3; or.b32 %r4, %r4, %r5;
  st.global.u32 [%rd5], %r4;
  ret;
}}"""
    x = np.arange(32, dtype=np.uint32) // 2
    out = gpu.empty(32, np.uint32)
    gpu.load(text)["k"].launch(1, 32, [gpu.array(x), out])
    bits, odd = x & 6, np.arange(32) % 2 == 1
    want = bits | combine(bits != 0, odd) * np.uint32(256) | combine(bits != 0, ~odd) * np.uint32(512)
    np.testing.assert_array_equal(out.numpy(), want)
