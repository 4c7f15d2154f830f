"""The native executor of the virtual GPU against the numpy one: the same bits, the same counts, the same findings.

Lanewise instructions are compared form by form, kernels (of nvcc and Triton, and our own programs) launch by launch, planted bugs
finding by finding.
"""

from __future__ import annotations

import ctypes
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fluxir import driver
from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from fluxir.runtime.launch import GpuProgram
from fluxir.runtime.vgpu.approximate import seeded
from fluxir.runtime.vgpu.driver import VirtualDriver
from fluxir.runtime.vgpu.isa import Form, Opcode
from fluxir.runtime.vgpu.native import compiled, run
from fluxir.runtime.vgpu.native.approximations import FUNCTIONS, inner_loop, loops_are_known
from fluxir.runtime.vgpu.native.context import WORDS
from fluxir.runtime.vgpu.native.lanewise import Spelling, spelling
from fluxir.runtime.vgpu.native.text import Text, module, scalar, vector
from fluxir.runtime.vgpu.ptx import Immediate, Instruction, Register
from fluxir.runtime.vgpu.values import dtype
from tests import test_vgpu_conformance as conformance
from tests.programs import random_program
from tests.test_vgpu_bugs import findings as bug_findings
from tests.test_vgpu_instructions import OPCODES, bits_of, operand_arrays, variants
from tests.vgpu import case
from tests.vgpu.planted import BUGS as PLANTED
from tests.vgpu.planted import Bug
from tests.vgpu_ptx import kernel

# ---- lanewise instructions, one by one


def _constants() -> list[Form]:
    """Forms that are spelled in another way where an operand is a constant."""
    out = []
    for text, count, place, values in (
        ("shl.b32", 2, 1, (0, 5, 31, 32, 40)), ("shr.s32", 2, 1, (0, 7, 31, 32)), ("shr.u64", 2, 1, (3, 63, 64)),
        ("bfe.u32", 3, 1, (0, 4, 24)), ("bfe.s32", 3, 1, (0, 4, 24)), ("bfi.b32", 4, 2, (0, 8, 20)),
        ("prmt.b32", 3, 2, (0x3210, 0x5410, 0x7632, 0x0123, 0x7777, 0x8888)),
    ):  # fmt: skip
        for v in values:
            sources: list[Any] = [Register(f"s{i}") for i in range(count)]
            sources[place] = Immediate(v)
            if text.startswith("bf"):
                sources[place + 1] = Immediate(8)
            name, *modifiers = text.split(".")
            x = Instruction(name, tuple(modifiers), (Register("d"), *sources), None, 1, f"{text} {v}")
            out.append(Form(x, (modifiers[0],), ()))
    return out


def _spelled(share: int) -> list[tuple[Opcode, Form, Spelling]]:
    """Forms that LLVM spells: one in `share` of those that differ from others only in flags and types."""
    found = [(o, form) for o in OPCODES for text in o.forms for form in variants(o, text)]
    found += [
        (o, form) for form in _constants() for o in OPCODES if form.instruction.name == o.name and form.type in o.types
    ]
    some = [x for x in found if not x[1].instruction.text.startswith(("set", "cvt")) or _number(x[1]) % share == 0]
    spelled = [(o, form, spelling(o, form)) for o, form in some]
    return [(o, form, how) for o, form, how in spelled if how is not None]


def _number(form: Form) -> int:
    return zlib.crc32(form.instruction.text.encode()) >> 4


def _function(i: int, opcode: Opcode, form: Form, how: Spelling) -> tuple[Text, list[str], list[str]]:
    """(a function of operands in memory, 256 bytes each, and results; types of operands; types of results)."""
    f = Text(f"define void @form{i}(ptr %c, ptr %in, ptr %out) nounwind")
    assert opcode.signature is not None
    result, taken = opcode.signature(form)
    kinds = [*taken, *["pred"] * opcode.reads_carry]
    operands = []
    for k, kind in enumerate(kinds):
        place = f.at("%in", 256 * k)
        if isinstance(constant := (*form.sources, None)[k], Immediate):
            v = f(f"or {vector(scalar(kind))} splat ({scalar(kind)} {constant.value}), zeroinitializer")
        elif kind == "pred":
            v = f(f"icmp ne {vector('i8')} {f.load(vector('i8'), place)}, zeroinitializer")
        else:
            v = f.load(vector(scalar(kind)), place)
        operands.append(v)
    found = how(f, *operands)
    results = found if isinstance(found, tuple) else (found,)
    given = [result] * len(form.destinations) + ["pred"] * form.has("cc")
    for k, (kind, v) in enumerate(zip(given, results, strict=True)):
        held, v = ("i8", f.cast("zext", vector("i1"), v, vector("i8"))) if kind == "pred" else (scalar(kind), v)
        f.store(vector(held), v, f.at("%out", 256 * k))
    f.do("ret void")
    return f, kinds, given


def _compare_forms(forms: list[tuple[Opcode, Form, Spelling]]) -> None:
    made = [_function(i, *x) for i, x in enumerate(forms)]
    code = compiled.compile_text(module(*(f for f, _, _ in made)), 0)
    words = np.zeros(len(WORDS), np.int64)
    words.view(np.uint64)[WORDS["seed"]] = 7 * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    words.view(np.float64)[WORDS["noise"]] = 1.0
    for name in FUNCTIONS:
        words[WORDS[name]], words[WORDS[f"{name}.data"]] = inner_loop(name)
    buffers = [np.zeros(256 * 9 + 64, np.uint8) for _ in range(2)]
    given, taken = (b[-b.ctypes.data % 64 :] for b in buffers)
    for i, ((opcode, form, _), (_, kinds, results)) in enumerate(zip(forms, made)):
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(code[f"form{i}"])
        drawn = operand_arrays(tuple(kinds), zlib.crc32(form.instruction.text.encode()) % 16, 64)
        arrays = [np.resize(a, 64) for a in drawn]
        for k, o in enumerate(form.sources):
            if isinstance(o, Immediate):
                arrays[k] = np.full(64, o.value, dtype(kinds[k]))
        with np.errstate(all="ignore"), seeded(7):
            want = opcode.meaning(form)(*arrays)
        for start in range(0, 64, 32):
            for k, a in enumerate(arrays):
                raw = np.ascontiguousarray(a[start : start + 32]).view(np.uint8)
                given[256 * k : 256 * k + len(raw)] = raw
            call(words.ctypes.data, given.ctypes.data, taken.ctypes.data)
            for k, (kind, w) in enumerate(zip(results, want if isinstance(want, tuple) else (want,), strict=True)):
                d = dtype(kind)
                got = bits_of(taken[256 * k : 256 * k + 32 * d.itemsize].view(d))
                right = bits_of(np.ascontiguousarray(np.broadcast_to(w, 64)[start : start + 32]))
                bad = np.flatnonzero(got != right)
                assert not len(bad), (
                    f"{form.instruction.text} of {[hex(int(bits_of(a)[start + bad[0]])) for a in arrays]}: "
                    f"{int(got[bad[0]]):#x}, not {int(right[bad[0]]):#x}"
                )


def test_every_lanewise_spelling_means_what_numpy_says() -> None:
    forms = _spelled(7)
    assert len(forms) > 400
    _compare_forms(forms)


@pytest.mark.deep
def test_all_comparisons_and_conversions_mean_what_numpy_says() -> None:
    _compare_forms(_spelled(1))


def test_numpys_functions_are_found() -> None:
    """Where they are not, approximate functions call numpy, which is right and slow."""
    assert loops_are_known()


# ---- whole kernels


def _both(launch: Callable[[str], tuple[list[Any], vgpu.Report]]) -> vgpu.Report:
    """Launch with each executor: same bits everywhere, same counts, same findings. The native report."""
    (a, one), (b, two) = launch("numpy"), launch("llvm")
    assert one.executor == "numpy"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8), f"bits of array {i}")
    assert one.counters == two.counters
    assert one.findings == two.findings
    return two


QUICK = """elementwise-add-5000 elementwise-saxpy-1026 elementwise-transpose-33-70 elementwise-stencil2d-35-50
    elementwise-half2_arithmetic-300 elementwise-mandelbrot-40-30 elementwise-monte_carlo-1000 elementwise-find-700
    collective-block_sum-777-96 collective-blelloch-700-128 collective-warp_votes-2 collective-shuffles-2 collective-groups-100
    collective-block_votes-3-70 collective-bfs-60-150 collective-softmax-3-65 async-group_copy-700 tensor-matmul_f16-70-72-104
    tensor-matmul_s8-45-37-80 atomics-shared_atomics-300 language-jump_table-200 add-add-1500 histogram-histogram-700""".split()

ORDER = ("lookback_scan", "swap_loops")
"""Kernels in which threads wait for each other, or try again: how often they do depends on who runs when."""


def _case_launch(what: case.Case, monkeypatch: pytest.MonkeyPatch) -> vgpu.Report:
    held: list[list[Any]] = []
    real = case.check

    def check(launch: case.Launch, arrays: dict[int, vgpu.DeviceArray]) -> None:
        held.append([a.numpy() for a in arrays.values()])
        real(launch, arrays)

    monkeypatch.setattr(case, "check", check)

    def launch(executor: str) -> tuple[list[Any], vgpu.Report]:
        report = case.run(what, executor=executor)
        return held[-1], report

    return _both(launch)


def _named(name: str) -> case.Case:
    return next(c for c in case.CASES if c.name == name)


@pytest.mark.parametrize("name", QUICK)
def test_kernels_of_other_compilers_run_natively(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _case_launch(_named(name), monkeypatch).executor == "llvm"


REST = [c for c in case.CASES if c.name not in QUICK and not c.deep and not any(o in c.name for o in ORDER)]


@pytest.mark.deep
@pytest.mark.parametrize("what", REST, ids=lambda c: c.name)
def test_all_kernels_of_other_compilers(what: case.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Natively, or refused by name."""
    try:
        _case_launch(what, monkeypatch)
    except FluxError as refused:
        assert refused.code == "FX0710" and 'executor="numpy" runs it' in str(refused)


def test_the_corpus_is_there() -> None:
    assert len(conformance.PARAMETERS) == len(case.CASES) > 100


# ---- programs of our own compiler


def _program(seed: int, executor: str) -> tuple[list[Any], list[vgpu.Report]]:
    p = random_program(seed)
    t = driver.as_target("sm_80")
    code = driver.generate(driver.build(p.module, t).stages["loops"], t)
    on = VirtualDriver(code.spec, code.ptx, vgpu.Device("sm_80", 1 << 28, executor=executor))
    on.profiling = True
    program = GpuProgram(code.spec, on, code.constants)
    results = program.call_flat(list(p.arrays))
    reports = list(on.reports)
    program.close()
    return [np.array(r) for r in results], reports


def _same_program(seed: int) -> int:
    """How many kernels were launched."""
    (a, ones), (b, twos) = (_program(seed, executor) for executor in ("numpy", "llvm"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8))
    assert len(ones) == len(twos)
    for one, two in zip(ones, twos):
        assert (one.kernel, one.counters, one.findings) == (two.kernel, two.counters, two.findings)
        assert two.executor == "llvm"
    return len(ones)


@pytest.mark.parametrize("seed", [1002, 1007])
def test_our_programs_run_natively(seed: int) -> None:
    assert _same_program(seed) > 0


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(3000, 3012))
def test_many_of_our_programs(seed: int) -> None:
    _same_program(seed)


# ---- planted bugs: the numpy executor says what is wrong, so both must say the same

SHARED = ".shared .align 16 .b8 s[1024];"
PLACE = "mov.u32 %r5, s; shl.b32 %r6, %r0, 2; add.u32 %r7, %r5, %r6;"
"""%r7: the thread's word of shared memory."""
OUT = "mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10;"
"""%rd11: the thread's word of the first array."""

BUGS: dict[str, tuple[str, str, str]] = {
    # kind of finding: (bug, clean twin, more declarations)
    "out-of-bounds": (OUT + "st.global.u32 [%rd11+256], %r0;", OUT + "st.global.u32 [%rd11], %r0;", ""),
    "misaligned": ("ld.global.u32 %r5, [%rd0+2];", OUT + "ld.global.u32 %r5, [%rd11];", ""),
    "uninitialised": (PLACE + "ld.shared.u32 %r8, [%r7];",
                      PLACE + "st.shared.u32 [%r7], %r0; ld.shared.u32 %r8, [%r7];", SHARED),
    "out-of-bounds in shared memory": (PLACE + "st.shared.u32 [%r7+1000], %r0;", PLACE + "st.shared.u32 [%r7], %r0;", SHARED),
    "out-of-bounds in local memory": ("mov.u64 %rd20, l; st.local.u32 [%rd20+16], %r0;",
                                      "mov.u64 %rd20, l; st.local.u32 [%rd20+12], %r0;", ".local .align 4 .b8 l[16];"),
    "shared-race of reads after writes": (
        PLACE + "xor.b32 %r8, %r6, 128; add.u32 %r8, %r5, %r8; st.shared.u32 [%r7], %r0; ld.shared.u32 %r9, [%r8];",
        PLACE + "xor.b32 %r8, %r6, 128; add.u32 %r8, %r5, %r8; st.shared.u32 [%r7], %r0; bar.sync 0; ld.shared.u32 %r9, [%r8];",
        SHARED),
    "shared-race of writes after reads": (
        PLACE + "xor.b32 %r8, %r6, 4; add.u32 %r8, %r5, %r8; st.shared.u32 [%r7], %r0; bar.sync 0; ld.shared.u32 %r9, [%r8];"
        "st.shared.u32 [%r7], %r9;",
        PLACE + "xor.b32 %r8, %r6, 4; add.u32 %r8, %r5, %r8; st.shared.u32 [%r7], %r0; bar.sync 0; ld.shared.u32 %r9, [%r8];"
        "bar.warp.sync -1; st.shared.u32 [%r7], %r9;", SHARED),
    "shared-race of several values": ("mov.u32 %r5, s; st.shared.u32 [%r5], %r0;",
                                      "mov.u32 %r5, s; st.shared.u32 [%r5], 7;", SHARED),
    "shared-race of atomics and a store": (
        "mov.u32 %r5, s; setp.ne.u32 %p1, %r0, 40; @!%p1 st.shared.u32 [%r5], 0; red.shared.add.u32 [%r5], 1;",
        "mov.u32 %r5, s; setp.ne.u32 %p1, %r0, 40; @!%p1 st.shared.u32 [%r5], 0; bar.sync 0; red.shared.add.u32 [%r5], 1;"
        "bar.sync 0; @!%p1 st.shared.u32 [%r5], 0;", SHARED),
    "global-race": (OUT + "mov.u32 %r5, %ctaid.x; st.global.u32 [%rd11], %r5;",
                    OUT + "mov.u32 %r5, %ctaid.x; setp.eq.u32 %p1, %r5, 0; @%p1 st.global.u32 [%rd11], %r5;", ""),
    "divergent-barrier": ("setp.lt.u32 %p1, %r0, 40; @%p1 bra L; bar.sync 0; bra M; L: bar.sync 0; M:",
                          "setp.lt.u32 %p1, %r0, 40; @%p1 bra L; add.u32 %r5, %r0, 1; L: bar.sync 0;", ""),
    "divergent-barrier after an exit": ("setp.lt.u32 %p1, %r0, 32; @%p1 exit; bar.sync 0;", "bar.sync 0; exit;", ""),
    "deadlock": ("setp.lt.u32 %p1, %r1, 16; @%p1 bar.warp.sync 0xffffffff; @!%p1 bar.sync 0;",
                 "setp.lt.u32 %p1, %r1, 16; @%p1 bar.warp.sync 0x0000ffff; @!%p1 bar.warp.sync 0xffff0000;", ""),
    "absent-lanes": ("setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r5, %r0, 16, 31, -1;",
                     "setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r5, %r0, 8, 31, 0xffff;", ""),
    "async-copy": (PLACE + OUT + "cp.async.ca.shared.global [%r7], [%rd11], 4; cp.async.commit_group; ld.shared.u32 %r8, [%r7];"
                   "cp.async.wait_all;",
                   PLACE + OUT + "cp.async.ca.shared.global [%r7], [%rd11], 4; cp.async.commit_group; cp.async.wait_group 0;"
                   "ld.shared.u32 %r8, [%r7];", SHARED),
    "async-copy that nobody waits for": (PLACE + OUT + "cp.async.ca.shared.global [%r7], [%rd11], 4;",
                                         PLACE + OUT + "cp.async.ca.shared.global [%r7], [%rd11], 4; cp.async.wait_all;", SHARED),
    "trap": ("setp.eq.u32 %p1, %r0, 33; @%p1 trap;", "setp.eq.u32 %p1, %r0, 99; @%p1 trap;", ""),
}  # fmt: skip


def _planted(text: str, executor: str, check: str) -> tuple[list[Any], vgpu.Report]:
    gpu = vgpu.Device("sm_80", 1 << 26)
    a = gpu.array(np.arange(64, dtype=np.uint32), "a")
    report = gpu.load(text)["k"].launch(2 if "ctaid" in text else 1, 64, [a], check=check, executor=executor)
    return [a.numpy()], report


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_found_alike_and_clean_twins_pass(bug: str) -> None:
    body, clean, more = BUGS[bug]
    text, twin = (kernel(b, 1, "sm_80", more) for b in (body, clean))
    report = _both(lambda executor: _planted(text, executor, "collect"))
    assert bug.split()[0] in {f.kind for f in report.findings}
    with pytest.raises(vgpu.SanitizerError, match=re.escape(bug.split()[0])):
        _planted(text, "llvm", "raise")
    passed = _both(lambda executor: _planted(twin, executor, "collect"))
    assert passed.executor == "llvm" and not passed.findings


def test_use_after_free_and_stores_into_constants() -> None:
    body = OUT + "st.global.u32 [%rd11], %r0;"

    def launch(executor: str) -> tuple[list[Any], vgpu.Report]:
        gpu = vgpu.Device("sm_80", 1 << 26)
        a = gpu.array(np.zeros(64, np.uint32))
        k = gpu.load(kernel(body, 1, "sm_80"))["k"]
        a.free()
        return [], k.launch(1, 64, [a], check="collect", executor=executor)

    assert [f.kind for f in _both(launch).findings] == ["use-after-free"]
    text = kernel("mov.u64 %rd5, c; st.global.u32 [%rd5], %r0;", 1, "sm_80").replace(
        ".visible", ".const .align 4 .b8 c[4];\n.visible", 1
    )
    assert _both(lambda executor: _planted(text, executor, "collect")).findings


def test_memory_after_a_finding_is_the_numpy_executors() -> None:
    """Everything up to the finding, as the reference ran it: not what native code got to."""
    body = OUT + "st.global.u32 [%rd11], 5; bar.sync 0; setp.eq.u32 %p1, %r0, 40; @%p1 st.global.u32 [%rd11+4096], %r0;"
    report = _both(lambda executor: _planted(kernel(body, 1, "sm_80"), executor, "collect"))
    assert [f.kind for f in report.findings] == ["out-of-bounds"]


def test_an_endless_launch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = vgpu.Device("sm_80", 1 << 26)
    k = gpu.load(kernel("L: add.u32 %r5, %r5, 1; bra L;", 0, "sm_80"))["k"]
    found = [k.launch(1, 64, [], check="collect", executor=e, max_steps=10_000).findings for e in ("numpy", "llvm")]
    assert found[0] == found[1] and [f.kind for f in found[0]] == ["deadlock"]
    monkeypatch.setattr(
        run, "SLOW", 1000
    )  # as for a launch that numpy would take hours for: native code says it itself
    (slow,) = k.launch(1, 64, [], check="collect", executor="llvm", max_steps=10_000).findings
    assert (slow.kind, slow.message, slow.thread) == (found[0][0].kind, found[0][0].message, found[0][0].thread)


@pytest.mark.deep
@pytest.mark.parametrize("bug", PLANTED, ids=lambda b: f"{b.family}-{b.kernel}")
def test_all_planted_bugs_are_found_alike(bug: Bug) -> None:
    """Whatever the numpy executor finds, native code does not pass over; both say the same."""
    for faulty in (True, False):
        found = []
        for executor in ("numpy", "llvm"):
            try:
                found.append({(f.kind, f.line) for f in bug_findings(bug, faulty, executor)})
            except FluxError as refused:
                assert refused.code == "FX0710" and executor == "llvm"
                return
        if (bug.kernel, faulty) != ("overflow", True):  # what lies at its wild addresses depends on what ran before
            assert found[0] == found[1]


# ---- which executor runs a launch

SAXPY = "elementwise-saxpy-1026"


def test_large_launches_run_natively_and_small_ones_do_not() -> None:
    gpu = vgpu.Device("sm_80", 1 << 28)
    k = gpu.load(case.text(_named(SAXPY).path))["saxpy"]
    for n, executor in ((4096, "numpy"), (1 << 19, "llvm")):
        x, y = gpu.array(np.ones(n, np.float32)), gpu.array(np.ones(n, np.float32))
        assert k.launch(n // 1024, 256, [2.0, x, y, n]).executor == executor
        assert (y.numpy() == 3).all()
        assert k.launch(n // 1024, 256, [2.0, x, y, n], executor="numpy").executor == "numpy"


def test_what_native_code_cannot_run_is_named() -> None:
    text = kernel("mov.u64 %rd5, %clock64;", 0, "sm_80")
    gpu = vgpu.Device("sm_80", 1 << 26)
    k = gpu.load(text)["k"]
    with pytest.raises(FluxError, match=r"FX0710.*clock64"):
        k.launch(1, 32, [], executor="llvm")
    with pytest.raises(ValueError, match="executor is one of"):
        k.launch(1, 32, [], executor="cuda")
    with pytest.raises(FluxError, match=r"FX0710.*cooperative"):
        k.launch(1, 32, [], executor="llvm", cooperative=True)


def test_a_seed_gives_the_same_bits_on_both() -> None:
    body = "ld.global.f32 %f1, [%rd11]; ex2.approx.f32 %f2, %f1; lg2.approx.f32 %f3, %f2; add.f32 %f4, %f2, %f3;"
    text = kernel(OUT + body + "st.global.f32 [%rd11], %f4;", 1, "sm_80")
    found = {}
    for seed in (0, 1, None):
        for executor in ("numpy", "llvm"):
            gpu = vgpu.Device("sm_80", 1 << 26)
            a = gpu.array(np.linspace(-5, 5, 64, dtype=np.float32))
            gpu.load(text)["k"].launch(1, 64, [a], executor=executor, seed=seed)
            found[seed, executor] = a.numpy().tobytes()
    assert all(found[seed, "numpy"] == found[seed, "llvm"] for seed in (0, 1, None))
    assert len(set(found.values())) == 3


def test_float_sums_of_atomics_differ_but_by_rounding() -> None:
    body = "cvt.rn.f32.u32 %f1, %r0; rcp.rn.f32 %f2, %f1; setp.ne.u32 %p1, %r0, 0; @%p1 red.global.add.f32 [%rd0], %f2;"
    text = kernel(body, 1, "sm_80")
    sums = []
    for executor in ("numpy", "llvm"):
        gpu = vgpu.Device("sm_80", 1 << 26)
        a = gpu.array(np.zeros(1, np.float32))
        report = gpu.load(text)["k"].launch(8, 256, [a], executor=executor)
        assert report.executor == executor
        sums.append((a.numpy()[0], report.counters))
    np.testing.assert_allclose(sums[0][0], sums[1][0], rtol=1e-6)
    assert sums[0][1] == sums[1][1]
