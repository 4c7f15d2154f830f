"""Every CPU template is assembled for every CPU target, with the registers and instructions that the target has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.codegen import checks
from fluxir.errors import FluxError
from fluxir.runtime import call_code, native, pool_code, relocations
from fluxir.runtime.program import Program
from fluxir.schedule import templates
from fluxir.target import CpuTarget, host, parse_target

TARGETS = ("cpu:x86-64-v2", "cpu:x86-64-v4", "cpu:aarch64+neon", "cpu:aarch64+sve256")
f32 = fx.f32


def attend(q: Any, k: Any, v: Any) -> Any:
    return fx.nn.softmax(q @ k.transpose(0, 2, 1) / 4, axis=-1) @ v


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "pointwise": (lambda x: fx.tanh(fx.exp(x * 0.5) + 1), (f32[5000],)),
    "rowwise": (lambda x: fx.nn.softmax(x, axis=-1), (f32[8, 300],)),
    "matmul": (lambda x, w, b: fx.maximum(x @ w + b, 0), (f32[100, 300], f32[300, 200], f32[200])),
    "small_dot": (lambda x, w: x @ w, (f32[4, 8], f32[8, 12])),
    "matmul_integer": (lambda x, w: x.astype(fx.i32) @ w.astype(fx.i32), (fx.u8[20, 300], fx.i8[300, 200])),
    "conv": (lambda x, w: fx.conv(x, w), (f32[1, 8, 20, 20], f32[2, 8, 3, 3])),
    "conv_channels": (lambda x, w: fx.conv(x, w), (f32[1, 3, 20, 20], f32[16, 3, 5, 5])),
    "conv_open": (lambda x, w: fx.conv(x, w), (f32["B", 8, "H", 20], f32[16, 8, 3, 3])),
    "conv_reduce": (fx.grad(lambda w, x: fx.sum(fx.conv(x, w) ** 2)), (f32[8, 3, 3, 3], f32[2, 3, 20, 20])),
    "depthwise": (lambda x, w: fx.conv(x, w, groups=16, padding=1), (f32[1, 16, 20, 20], f32[16, 1, 3, 3])),
    "winograd": (lambda x, w: fx.conv(x, w), (f32[1, 16, 28, 28], f32[32, 16, 3, 3])),
    "window": (lambda x: fx.functional.max_pool(x, 2), (f32[1, 4, 16, 16],)),
    "attention": (attend, (f32[2, 64, 32], f32[2, 64, 32], f32[2, 64, 32])),
    "attention_decode": (attend, (f32[2, 1, 32], f32[2, 64, 32], f32[2, 64, 32])),
    "attention_grad": (
        fx.grad(lambda q, k, v: fx.sum(attend(q, k, v) ** 2)),
        (f32[2, 64, 32], f32[2, 64, 32], f32[2, 64, 32]),
    ),
    "sorting": (lambda x: fx.sort(x), (f32[4, 100],)),
    "cumulative": (lambda x: fx.cumsum(x), (f32[1000],)),
    "scatter": (lambda x, i: fx.put_along_axis(x, i, x * 2, axis=0), (f32[50], fx.i64[50])),
    "nonzero": (lambda x: fx.nonzero(x, size=10, fill_value=0), (f32[50],)),
    "concat": (lambda x, y: fx.concat([x * 2, y], axis=1), (f32[8, 100], f32[8, 200])),
    "pad": (lambda x: fx.pad(x * 2, ((1, 1), (2, 2))), (f32[30, 40],)),
    "update": (lambda x, y: fx.dynamic_update(x, y * 2, (3,)), (f32[50], f32[9])),
    "half": (lambda x: fx.rint(x.astype(f32)).astype(fx.f16) * 2, (fx.f16[333],)),
    "loop": (lambda x: fx.fori_loop(0, 9, lambda i, c: c * 0.5 + 1, x), (f32[64],)),
}


def assembled(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The templates that a program takes on a target; its object code is for that machine and calls nothing unknown."""
    taken: set[str] = set()

    def noting(t: templates.Template) -> templates.TemplateFunction:
        def make(group: Any, on: Any) -> Any:
            found = t.make(group, on)
            if found is not None:
                taken.add(t.name)
            return found

        return make

    noted = [templates.Template(t.name, t.target, noting(t), t.anchors, t.priority, t.doc) for t in templates.TEMPLATES]
    monkeypatch.setattr(templates, "TEMPLATES", noted)
    fn, args = PROGRAMS[name]
    compiled = fx.jit(fn, facts="H >= 3" if name == "conv_open" else None).lower(*args).compile(target, cache=False)
    checks.check_object(compiled.code)
    number = int.from_bytes(compiled.code[18:20], "little")
    to = parse_target(target)
    assert isinstance(to, CpuTarget) and relocations.MACHINES[number].name == to.machine
    if to.machine != host().machine or to.missing_on(host()):
        with pytest.raises(FluxError, match="FX0509"):
            Program(compiled.spec, compiled.code, compiled.constants)
    return taken


def is_seldom(name: str, target: str) -> bool:
    """All programs are assembled for two targets always; for the others, which differ less, in turn."""
    return target in ("cpu:x86-64-v2", "cpu:aarch64+sve256") or name == "attention_grad"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(n, t, id=f"{n}-{t.partition(':')[2]}", marks=[pytest.mark.deep] if is_seldom(n, t) else [])
        for n in PROGRAMS
        for t in TARGETS
    ],
)
def test_every_template_is_assembled(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = assembled(name, target, monkeypatch)
    known = {t.name for t in templates.TEMPLATES}
    # What a template takes depends on the target's vectors; the widest ones are taken by all.
    assert target != "cpu:x86-64-v4" or name in taken or name not in known, taken


def test_no_template_is_forgotten() -> None:
    names = {t.name for t in templates.TEMPLATES if t.target == "cpu"}
    assert names - set(PROGRAMS) == {"split"}, "which only cuts groups that the others take"


def registers(pattern: str, asm: str) -> set[str]:
    return set(re.findall(pattern, asm))


@pytest.mark.parametrize(
    ("target", "wide", "most", "fma"),
    [
        ("cpu:x86-64-v2", r"%xmm\d+", 16, ""),
        ("cpu:x86-64-v3", r"%ymm\d+", 16, "vfmadd"),
        ("cpu:x86-64-v4", r"%zmm\d+", 32, "vfmadd"),
        ("cpu:aarch64+neon", r"\bv\d+\.4s", 32, "fmla"),
        ("cpu:aarch64+sve", r"\bv\d+\.4s", 32, "fmla"),
        ("cpu:aarch64+sve256", r"\bz\d+\.s", 32, "fmla"),
        ("cpu:aarch64+sve512", r"\bz\d+\.s", 32, "fmla"),
    ],
)
def test_products_use_the_registers_that_there_are(target: str, wide: str, most: int, fma: str) -> None:
    asm = fx.jit(lambda x, y: x @ y).lower(f32[256, 256], f32[256, 256]).as_text("asm", target)
    used = len(registers(wide, asm))
    assert used > 0.8 * most or target == "cpu:x86-64-v2"
    assert fma in asm and ("vfmadd" in asm or "fmla" in asm) == bool(fma)
    if target != "cpu:x86-64-v4":
        assert "%zmm" not in asm


def test_abilities_become_instructions() -> None:
    f = fx.jit(lambda x: fx.floor(x.astype(f32)).astype(fx.f16)).lower(fx.f16[64])
    assert "vcvtph2ps" in f.as_text("asm", "cpu:x86-64-v3") and "cvtph" not in f.as_text("asm", "cpu:x86-64-v2")
    arm = f.as_text("asm", "cpu:aarch64+neon")
    assert re.search(r"\bfcvtl?\b", arm) and "frintm" in arm


def test_the_runtime_s_own_code_is_assembled_for_every_machine() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for machine in pool_code.MACHINES:
        m, text = native.module(machine)
        data = native.compiled(m, text)
        outside = set(checks.undefined_symbols(data))
        assert outside == {"syscall", "clock_gettime"}, outside
        assert relocations.MACHINES[int.from_bytes(data[18:20], "little")].name == machine
    assert len(call_code.Word) == call_code.ROUTE_WORDS


def words(*values: int) -> memoryview:
    return memoryview(bytearray(b"".join(v.to_bytes(4, "little") for v in values)))


@pytest.mark.parametrize(
    ("kind", "before", "at", "target", "after"),
    [  # the words that GNU as and ld make of these instructions at these places
        (283, 0x94000000, 0, 0x100, 0x94000040),  # bl
        (282, 0x14000000, 4, 0, 0x17FFFFFF),  # b, backwards
        (275, 0x90000000, 0, 0x3010, 0xF0000000),  # adrp x0, three pages further
        (277, 0x91000000, 0, 0x3010, 0x91004000),  # add x0, x0, :lo12:
        (286, 0xF9400000, 0, 0x3018, 0xF9400C00),  # ldr x0, [x0, :lo12:]
        (299, 0x3DC00000, 0, 0x3020, 0x3DC00800),  # ldr q0
        (285, 0xB9400000, 0, 0x3014, 0xB9401400),  # ldr w0
        (280, 0x54000000, 0, 0x20, 0x54000100),  # b.eq
        (274, 0x10000000, 0, 5, 0x30000020),  # adr
    ],
)
def test_relocations_of_aarch64(kind: int, before: int, at: int, target: int, after: int) -> None:
    memory = words(*([before] * 4))
    relocations.MACHINES[183].apply(memory, 0x10000, kind, at, target)
    assert int.from_bytes(memory[at : at + 4], "little") == after


def test_relocations_that_do_not_fit_are_refused() -> None:
    arm = relocations.MACHINES[183]
    for kind, target in ((283, 1 << 28), (286, 0x3014), (275, 1 << 33), (9999, 0)):
        with pytest.raises(ValueError, match=r"too large|aligned|type"):
            arm.apply(words(0, 0), 0, kind, 0, target)
    with pytest.raises(ValueError):
        arm.stub(1 << 21)


def test_numpy_agrees_on_this_machine() -> None:
    """The same program for the target nearest to this machine and for this machine."""
    x = np.linspace(-3, 3, 1000, dtype=np.float32)
    f = fx.jit(lambda x: fx.exp(x) * 2).lower(f32[1000])
    a, b = f.compile(host().target)(x), f.compile("cpu")(x)
    np.testing.assert_allclose(a, np.exp(x) * 2, rtol=1e-6)
    np.testing.assert_array_equal(a, b)
