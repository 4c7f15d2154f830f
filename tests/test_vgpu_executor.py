"""The numpy executor of the virtual GPU: memory, atomics, warps, barriers, counters, calls, launches and their errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from fluxir.runtime.vgpu import atomics


def kernel(
    body: str, parameters: str = ".param .u64 out", before: str = "", limits: str = "", target: str = "sm_80"
) -> str:
    """A module with one kernel `k`. %r, %f, %rd, %p, %rs are declared; %rd1 holds `out`, %r1 the thread's number in the grid,
    %rd2 the address of its 4 bytes of `out`."""
    return f""".version 8.0
.target {target}
.address_size 64
{before}
.visible .entry k({parameters}) {limits} {{
  .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .f64 %fd<8>; .reg .b64 %rd<30>; .reg .pred %p<8>; .reg .b16 %rs<8>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r0, %tid.x;
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mad.lo.s32 %r1, %r2, %r3, %r0;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd2, %rd1, %rd2;
  {body}
  ret;
}}
"""


def run(body: str, out: Any, grid: Any = 1, block: Any = 32, check: str = "raise", **options: Any) -> tuple[Any, Any]:
    """(what `out` holds afterwards, the report)."""
    extra = {k: options.pop(k) for k in ("parameters", "before", "limits", "target") if k in options}
    gpu = vgpu.Device(extra.get("target", "sm_80"))
    given = gpu.array(out)
    args = [given, *options.pop("args", ())]
    report = gpu.load(kernel(body, **extra))["k"].launch(grid, block, args, check=check, **options)
    return given.numpy(), report


def kinds(body: str, out: Any, **options: Any) -> list[str]:
    return [f.kind for f in run(body, out, check="collect", **options)[1].findings]


# ---- atomics


def sequential(units: np.ndarray, index: np.ndarray, b: np.ndarray, f: Any) -> tuple[np.ndarray, np.ndarray]:
    units, old = units.copy(), np.empty_like(b)
    for i, (at, x) in enumerate(zip(index, b)):
        old[i] = units[at]
        units[at] = f(units[at], x)
    return units, old


@pytest.mark.parametrize("name", ["add", "min", "xor", "exch", "inc", "float add", "flushed add"])
def test_threads_take_turns(name: str) -> None:
    rng = np.random.default_rng(3)
    combine = {
        "add": np.add, "min": np.minimum, "xor": np.bitwise_xor, "exch": lambda a, b: b,
        "inc": lambda a, b: np.where(a >= b, a.dtype.type(0), a + a.dtype.type(1)),
        "float add": np.add,
        "flushed add": lambda a, b: np.where(abs(a + b) < 2.0**-126, np.float32(0), a + b).astype(np.float32),
    }[name]  # fmt: skip
    for places, lanes in ((1, 300), (7, 200), (500, 200), (3, 0)):
        index = rng.integers(0, places, lanes)
        if "add" in name and name != "add":
            units, b = rng.normal(size=places).astype(np.float32), rng.normal(size=lanes).astype(np.float32)
            if name == "flushed add" and lanes:
                b[::5] = 1e-39
        else:
            units, b = rng.integers(0, 9, places).astype(np.uint32), rng.integers(0, 9, lanes).astype(np.uint32)
        expected, old = sequential(units, index, b, combine)
        tiny = 2.0**-126 if name == "flushed add" else 0.0
        found = atomics.update(units, index, b, combine, name in ("add", "min", "xor", "exch"), tiny)
        np.testing.assert_array_equal(units, expected)
        np.testing.assert_array_equal(found, old)


def test_compare_and_swap_takes_turns() -> None:
    rng = np.random.default_rng(4)
    for places, lanes in ((1, 50), (5, 200), (300, 100)):
        units = rng.integers(0, 3, places).astype(np.uint32)
        index = rng.integers(0, places, lanes)
        expected, new = rng.integers(0, 3, lanes).astype(np.uint32), rng.integers(0, 3, lanes).astype(np.uint32)
        want, old = units.copy(), np.empty_like(new)
        for i, at in enumerate(index):
            old[i] = want[at]
            if want[at] == expected[i]:
                want[at] = new[i]
        found = atomics.compare_and_swap(units, index, expected, new)
        np.testing.assert_array_equal(units, want)
        np.testing.assert_array_equal(found, old)


def test_atomics_of_a_kernel() -> None:
    out, _ = run("atom.global.add.u32 %r5, [%rd1], 3; atom.global.max.s32 %r6, [%rd1+4], %r5; red.global.or.b32 [%rd1+8], %r0;",
                 np.zeros(3, np.int32), grid=3)  # fmt: skip
    assert out.tolist() == [288, 285, 31]
    out, _ = run("mov.f32 %f1, 0f3F000000; red.global.add.f32 [%rd1], %f1;", np.zeros(1, np.float32), grid=3)
    assert out[0] == 48
    out, _ = run("atom.global.inc.u32 %r5, [%rd1], 9; mad.wide.u32 %rd3, %r0, 4, %rd1; st.global.u32 [%rd3+4], %r5;",
                 np.zeros(33, np.uint32))  # fmt: skip
    assert out[1:].tolist() == [i % 10 for i in range(32)] and out[0] == 2


# ---- memory


def test_loads_extend_by_type_and_vectors_go_in_order() -> None:
    body = """
      ld.global.s8 %r5, [%rd1]; ld.global.u8 %r6, [%rd1]; ld.global.s16 %r7, [%rd1+2];
      mov.u32 %r8, 7; st.global.v4.u32 [%rd1+16], {%r5, %r6, %r7, %r8}; ld.global.v2.u32 {%r9, %r10}, [%rd1+16];
      st.global.v2.u32 [%rd1+32], {%r10, %r9};"""
    data = np.zeros(10, np.uint32)
    data[0] = 0x80FF_00FE
    out, _ = run(body, data, block=1)
    assert out[4:8].astype(np.int32).tolist() == [-2, 254, -32513, 7] and out[8:].tolist() == [254, 0xFFFFFFFE]


def test_generic_addresses_say_where_they_point() -> None:
    before = ".shared .align 4 .b32 s[32]; .global .align 4 .b32 g[2] = {5, 6};"
    body = """
      .local .align 4 .b32 loc[4];
      mul.wide.u32 %rd5, %r0, 4; mov.u64 %rd6, s; cvta.shared.u64 %rd6, %rd6; add.s64 %rd6, %rd6, %rd5;
      st.u32 [%rd6], %r0; bar.sync 0; ld.u32 %r5, [%rd6];
      mov.u64 %rd7, loc; cvta.local.u64 %rd7, %rd7; st.u32 [%rd7+4], %r5; ld.local.u32 %r6, [loc+4];
      mov.u64 %rd8, g; cvta.global.u64 %rd8, %rd8; ld.u32 %r7, [%rd8+4]; add.s32 %r8, %r6, %r7;
      isspacep.shared %p1, %rd6; isspacep.local %p2, %rd7; isspacep.global %p3, %rd8; isspacep.shared %p4, %rd8;
      and.pred %p1, %p1, %p2; and.pred %p1, %p1, %p3; not.pred %p4, %p4; and.pred %p1, %p1, %p4;
      selp.b32 %r8, %r8, -1, %p1; st.u32 [%rd2], %r8;"""
    out, _ = run(body, np.zeros(32, np.int32), before=before)
    assert out.tolist() == [i + 6 for i in range(32)]


def test_constants_and_initialised_variables() -> None:
    before = ".const .align 4 .f32 c[3] = {0f3F800000, 2.5, 4}; .global .align 8 .u64 p = generic(q); .global .align 4 .b32 q = 42;"
    body = "ld.const.f32 %f1, [c+4]; ld.const.f32 %f3, [c+8]; add.f32 %f1, %f1, %f3; ld.global.u64 %rd5, [p]; ld.u32 %r5, [%rd5]; cvt.rn.f32.u32 %f2, %r5; add.f32 %f1, %f1, %f2; st.global.f32 [%rd1], %f1;"
    assert run(body, np.zeros(1, np.float32), before=before, block=1)[0].tolist() == [48.5]


def test_asynchronous_copies_arrive_at_their_wait() -> None:
    before = ".shared .align 16 .b8 s[512];"
    copy = "mul.wide.u32 %rd5, %r0, 4; mov.u64 %rd6, s; add.s64 %rd6, %rd6, %rd5; cp.async.ca.shared.global [%rd6], [%rd2], 4; cp.async.commit_group; "
    use = "ld.shared.u32 %r5, [%rd6]; add.s32 %r5, %r5, 1; st.global.u32 [%rd2], %r5;"
    data = np.arange(32, dtype=np.int32)
    out, _ = run(copy + "cp.async.wait_group 0; " + use, data, before=before)
    assert out.tolist() == list(range(1, 33))
    # too early: the load finds nothing yet, and the store overwrites what is still to be read
    early = kinds(copy + "cp.async.wait_group 1; " + use + " cp.async.wait_all;", data, before=before)
    assert early == ["async-copy", "async-copy"]
    assert kinds(copy + use, data, before=before) == ["async-copy"] * 3  # and nobody ever waits
    short = copy.replace("[%rd2], 4;", "[%rd2], 4, 2;") + "cp.async.wait_all; " + use
    assert run(short, np.full(32, 0x7FFF0001, np.int32), before=before)[0].tolist() == [2] * 32


# ---- what the sanitizer finds


@pytest.mark.parametrize(
    ("kind", "words", "body"),
    [
        ("out-of-bounds", "0 bytes past the end of the allocation", "st.global.u32 [%rd2+4], %r0;"),
        ("out-of-bounds", "bytes before the allocation", "st.global.u32 [%rd2+-4], %r0;"),
        ("misaligned", "not a multiple of 4", "st.global.u32 [%rd1+2], %r0;"),
        ("out-of-bounds", "no shared memory", "st.shared.u32 [%r0], %r0;"),
        ("out-of-bounds", "no allocation is near", "mov.u64 %rd5, 8; st.global.u32 [%rd5], %r0;"),
        (
            "uninitialised",
            "byte 4 of `l`",
            ".local .align 4 .b32 l[2]; ld.local.u32 %r5, [l+4]; st.global.u32 [%rd2], %r5;",
        ),
        ("out-of-bounds", "past the end of `l`", ".local .align 4 .b32 l[2]; st.local.u32 [l+8], %r0;"),
        ("trap", "trap", "setp.eq.s32 %p1, %r0, 5; @%p1 trap;"),
        (
            "absent-lanes",
            "names lanes 0, 1",
            "setp.lt.s32 %p1, %r0, 2; @%p1 ret; shfl.sync.idx.b32 %r5, %r0, 4, 31, -1;",
        ),
        ("absent-lanes", "not in its own mask", "vote.sync.any.pred %p1, %p2, 1;"),
        ("out-of-bounds", "a store into constant memory", "mov.u64 %rd5, c; st.u32 [%rd5], %r0;"),
        ("out-of-bounds", "4 bytes at 8 of 8 bytes of kernel parameters", "ld.param.u32 %r5, [out+8];"),
    ],
)
def test_a_finding_says_what_and_where(kind: str, words: str, body: str) -> None:
    with pytest.raises(vgpu.SanitizerError) as caught:
        run(body, np.zeros(32, np.uint32), before=".const .align 4 .b32 c[1] = {7};")
    f = caught.value.findings[0]
    assert f.kind == kind and words in f.message, f
    assert f.kernel == "k" and f.block == (0, 0, 0) and f.thread is not None
    assert f.text.rstrip(";") in " ".join(body.split()) and f.line > 0


def test_the_right_thread_and_address_are_named() -> None:
    with pytest.raises(vgpu.SanitizerError) as caught:
        run("st.global.u32 [%rd2], %r0;", np.zeros(90, np.uint32), grid=3)
    f = caught.value.findings[0]
    assert f.block == (2, 0, 0) and f.thread == (26, 0, 0) and f.count == 6
    assert re.search(r"360 bytes at 0x[0-9a-f]+", str(f)) and "6 threads in all" in str(f)


def test_shared_memory_between_barriers() -> None:
    before = ".shared .align 4 .b32 s[64];"
    address = "mul.wide.u32 %rd5, %r0, 4; mov.u64 %rd6, s; add.s64 %rd6, %rd6, %rd5; mov.u64 %rd8, s; "
    write, read = "st.shared.u32 [%rd6], %r0; ", "ld.shared.u32 %r5, [%rd8+252]; st.global.u32 [%rd2], %r5; "
    out = np.zeros(64, np.uint32)
    options: dict[str, Any] = {"before": before, "block": 64}
    assert run(address + write + "bar.sync 0; " + read, out, **options)[0].tolist() == [63] * 64
    assert kinds(address + write + read, out, **options) == ["shared-race"]
    assert kinds(address + write + "bar.sync 0; " + read + write, out, **options) == ["shared-race"]
    assert kinds(address + "st.shared.u32 [%rd8], 5; ", out, **options) == []  # the same value
    assert kinds(address + "st.shared.u32 [%rd8], %r0; ", out, **options) == ["shared-race"]
    # one warp: a barrier of the warp is enough, none is not
    neighbour = "xor.b32 %r7, %r0, 1; mul.wide.u32 %rd5, %r7, 4; add.s64 %rd8, %rd8, %rd5; ld.shared.u32 %r5, [%rd8]; st.global.u32 [%rd2], %r5;"
    assert kinds(address + write + "bar.warp.sync -1; " + neighbour, out, before=before) == []
    assert kinds(address + write + neighbour, out, before=before) == ["shared-race"]


def test_producers_and_consumers_meet_at_named_barriers() -> None:
    before = ".shared .align 4 .b32 s[32];"
    body = """
      setp.ge.u32 %p1, %r0, 32; and.b32 %r4, %r0, 31; mul.wide.u32 %rd5, %r4, 4; mov.u64 %rd6, s; add.s64 %rd6, %rd6, %rd5;
      @%p1 bra CONSUME;
      st.shared.u32 [%rd6], %r0; bar.arrive 1, 64; bra END;
      CONSUME: bar.sync 1, 64; ld.shared.u32 %r5, [%rd6]; st.global.u32 [%rd2], %r5;
      END: """
    out, _ = run(body, np.zeros(64, np.uint32), before=before, block=64)
    assert out[32:].tolist() == list(range(32))
    assert kinds(body.replace("bar.sync 1, 64;", ""), np.zeros(64, np.uint32), before=before, block=64) == [
        "shared-race"
    ]
    assert kinds(body.replace("bar.arrive 1, 64;", ""), np.zeros(64, np.uint32), before=before, block=64) == [
        "deadlock"
    ]


def test_barriers_in_divergent_code() -> None:
    out = np.zeros(64, np.uint32)
    branch = "setp.lt.u32 %p1, %r0, 10; @%p1 bra SKIP; bar.sync 0; SKIP: st.global.u32 [%rd2], %r0;"
    assert kinds(branch, out, block=64) == ["divergent-barrier"]
    early = "setp.lt.u32 %p1, %r0, 32; @%p1 ret; bar.sync 0;"
    assert kinds(early, out, block=64) == ["divergent-barrier"]
    both = "setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 0;\n bra END; A: bar.sync 0; END: "
    assert kinds(both, out, block=64) == ["divergent-barrier", "divergent-barrier"]
    assert kinds(both.replace("bar.sync 0", "bar.sync 0, 64"), out, block=64) == []
    count = "setp.lt.u32 %p1, %r0, 40; barrier.cta.red.popc.aligned.u32 %r5, 0, %p1; st.global.u32 [%rd2], %r5;"
    assert run(count, out, block=64)[0].tolist() == [40] * 64


def test_blocks_do_not_see_each_other_without_an_atomic() -> None:
    out = np.zeros(64, np.uint32)
    assert kinds("st.global.u32 [%rd1], %r2;", out, grid=2) == ["global-race"]
    assert kinds("st.global.u32 [%rd1], 5;", out, grid=2) == []
    assert kinds("ld.global.u32 %r5, [%rd1]; st.global.u32 [%rd2], %r5;", out, grid=2) == ["global-race"]
    assert kinds("red.global.add.u32 [%rd1], 1;", out, grid=2) == []


def test_a_spinning_thread_lets_the_writer_run() -> None:
    body = """
      setp.eq.u32 %p1, %r1, 0; @%p1 bra WAIT;
      setp.ne.u32 %p2, %r1, 40; @%p2 ret; membar.gl; atom.global.exch.b32 %r5, [%rd1], 9; ret;
      WAIT: ld.volatile.global.u32 %r6, [%rd1]; setp.eq.u32 %p3, %r6, 0; @%p3 bra WAIT; st.global.u32 [%rd1+4], %r6;"""
    assert run(body, np.zeros(2, np.uint32), grid=2)[0].tolist() == [9, 9]
    alone = "WAIT: ld.volatile.global.u32 %r6, [%rd1]; setp.eq.u32 %p3, %r6, 0; @%p3 bra WAIT;"
    with pytest.raises(vgpu.SanitizerError, match="deadlock"):
        run(alone, np.zeros(1, np.uint32))


def test_collecting_goes_on_and_off_checks_only_what_is_there() -> None:
    body = "ld.global.u32 %r5, [%rd2]; add.s32 %r5, %r5, 1; st.global.u32 [%rd2], %r5; st.global.u32 [%rd1+2], %r0;"
    out, report = run(body, np.zeros(30, np.uint32), check="collect")
    assert [f.kind for f in report.findings] == ["out-of-bounds", "out-of-bounds", "misaligned"]
    assert out.tolist() == [1] * 30
    gpu = vgpu.Device("sm_80")
    x = gpu.empty(32, np.uint32)
    k = gpu.load(kernel("ld.global.u32 %r5, [%rd2]; st.global.u32 [%rd2], %r5;"))["k"]
    with pytest.raises(vgpu.SanitizerError, match="uninitialised"):
        k.launch(1, 32, [x])
    k.launch(1, 32, [x], check="off")


def test_freed_and_leaked_memory() -> None:
    gpu = vgpu.Device("sm_80")
    x, y = gpu.array(np.zeros(32, np.uint32), "x"), gpu.zeros(4)
    k = gpu.load(kernel("st.global.u32 [%rd2], %r0;"))["k"]
    x.free()
    with pytest.raises(vgpu.SanitizerError, match=r"use-after-free.*`x`, 128 bytes"):
        k.launch(1, 32, [x])
    with pytest.raises(FluxError, match="not the address of a live allocation"):
        x.free()
    with pytest.raises(FluxError):
        x.numpy()
    with pytest.raises(vgpu.SanitizerError, match="leak"):
        gpu.close()
    y.free()
    gpu.close()


# ---- counters


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32)])
def test_sectors_of_a_strided_access(stride: int, sectors: int) -> None:
    body = f"mul.lo.u32 %r5, %r0, {4 * stride}; cvt.u64.u32 %rd5, %r5; add.s64 %rd5, %rd1, %rd5; st.global.u32 [%rd5], %r0;"
    _, report = run(body, np.zeros(1024, np.uint32))
    c = report.counters
    assert (
        c.sectors == {"global store": sectors}
        and c.requests == {"global store": 1}
        and c.bytes == {"global store": 128}
    )
    assert c.dram_bytes == 32 * sectors and c.l2_bytes == 32 * sectors


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (3, 1), (16, 16), (32, 32), (33, 1), (0, 1)])
def test_bank_conflicts_of_a_strided_access(stride: int, wavefronts: int) -> None:
    body = f"mul.lo.u32 %r5, %r0, {4 * stride}; mov.u32 %r6, s; add.u32 %r5, %r5, %r6; st.shared.u32 [%r5], 1;"
    _, report = run(body, np.zeros(1, np.uint32), before=".shared .align 16 .b8 s[8192];")
    assert report.counters.wavefronts == {"shared store": wavefronts}
    assert report.counters.bank_conflicts == wavefronts - 1


def test_wide_shared_accesses_take_turns_of_a_quarter_warp() -> None:
    body = "mul.lo.u32 %r5, %r0, 16; mov.u32 %r6, s; add.u32 %r5, %r5, %r6; st.shared.v4.u32 [%r5], {1, 2, 3, 4};"
    _, report = run(body, np.zeros(1, np.uint32), before=".shared .align 16 .b8 s[8192];")
    assert report.counters.wavefronts == {"shared store": 4} and report.counters.bank_conflicts == 0


def test_instructions_divergence_and_lane_use() -> None:
    body = "setp.lt.u32 %p1, %r0, 8; @!%p1 bra END; add.s32 %r5, %r0, 1; st.global.u32 [%rd2], %r5; END: "
    _, report = run(body, np.zeros(64, np.uint32), grid=2)
    c = report.counters
    assert (c.branches, c.divergent_branches) == (2, 2)
    assert c.warp_instructions == 2 * (7 + 2 + 2 + 1) and c.thread_instructions == 64 * (7 + 2 + 1) + 16 * 2
    assert c.by_class["memory.global"] == 2 and c.lane_use == pytest.approx(
        c.thread_instructions / c.warp_instructions / 32
    )
    assert (c + c).warp_instructions == 2 * c.warp_instructions and (c + c).requests == {"global store": 4}


# ---- calls


def test_functions_are_called_with_their_arguments() -> None:
    before = """
    .func (.param .b32 r) twice(.param .b32 x) { .reg .b32 %a<3>; ld.param.b32 %a1, [x]; add.s32 %a2, %a1, %a1; st.param.b32 [r], %a2; ret; }
    .func (.reg .b32 %r) plus(.reg .b32 %a, .reg .b32 %b) { add.s32 %r, %a, %b; ret; }
    .func (.param .b32 r) sum(.param .b32 n) {
      .reg .b32 %a<5>; .reg .pred %p; ld.param.b32 %a1, [n]; mov.b32 %a2, 0; setp.eq.s32 %p, %a1, 0; @%p bra L;
      sub.s32 %a3, %a1, 1; { .param .b32 q; st.param.b32 [q], %a3; .param .b32 s; call.uni (s), sum, (q); ld.param.b32 %a4, [s]; }
      add.s32 %a2, %a1, %a4; L: st.param.b32 [r], %a2; ret; }"""
    body = """
      .param .b32 p0; .param .b32 v0; st.param.b32 [p0], %r0; call.uni (v0), twice, (p0); ld.param.b32 %r5, [v0];
      call (%r6), plus, (%r5, 100); setp.gt.u32 %p1, %r0, 3; @%p1 call (%r6), plus, (%r6, 1000);
      call (%r12), twice, (%r6); call (%r6), twice, (%r12); shr.u32 %r6, %r6, 2;
      and.b32 %r7, %r0, 7; st.param.b32 [p0], %r7; call (v0), sum, (p0); ld.param.b32 %r8, [v0]; add.s32 %r6, %r6, %r8;
      st.global.u32 [%rd2], %r6;"""
    out, _ = run(body, np.zeros(32, np.uint32), before=before)
    assert out.tolist() == [2 * i + 100 + (1000 if i > 3 else 0) + sum(range(i % 8 + 1)) for i in range(32)]


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    text = ", ".join(str(c) for c in b"%d|%5.2f|%s|%x|%lld|%c|%%\n\0")
    before = f".global .align 1 .b8 form[30] = {{{text}}}; .global .align 1 .b8 word[3] = {{104, 105, 0}};\n.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);"
    body = """
      .local .align 8 .b8 buf[48]; .param .b64 a0; .param .b64 a1; .param .b32 v;
      sub.s32 %r5, %r0, 1; st.local.u32 [buf], %r5; mov.f64 %fd1, 0d3FF8000000000000; st.local.f64 [buf+8], %fd1;
      mov.u64 %rd5, word; st.local.u64 [buf+16], %rd5; st.local.u32 [buf+24], 255; mov.u64 %rd6, -5; st.local.u64 [buf+32], %rd6; st.local.u32 [buf+40], 65;
      mov.u64 %rd7, buf; cvta.local.u64 %rd7, %rd7; mov.u64 %rd8, form; st.param.b64 [a0], %rd8; st.param.b64 [a1], %rd7;
      call.uni (v), vprintf, (a0, a1);"""
    gpu = vgpu.Device("sm_80")
    gpu.load(kernel(body, before=before))["k"].launch(1, 2, [gpu.zeros(1)])
    assert capsys.readouterr().out == "-1| 1.50|hi|ff|-5|A|%\n0| 1.50|hi|ff|-5|A|%\n"
    assert len(gpu.output) == 2


# ---- launches


def test_launch_limits_of_the_chosen_gpu() -> None:
    k = vgpu.Device("sm_80").load(kernel("", limits=".maxntid 128, 1, 1"))["k"]
    x = k.module.device.zeros(1)
    for grid, block, shared, words in (
        (1, 256, 0, "compiled for 128"),
        (1, 2048, 0, "sm_80 takes 1024"),
        (1, (1, 1, 65), 0, "block.z = 65; sm_80 takes 64"),
        ((1, 70000), 32, 0, "grid.y = 70000; sm_80 takes 65535"),
        (1, 32, 200_000, "200000 bytes of shared memory"),
        (0, 32, 0, "must be positive"),
    ):
        with pytest.raises(vgpu.SanitizerError, match=words) as caught:
            k.launch(grid, block, [x], shared_bytes=shared)
        assert caught.value.findings[0].kind == "limit"


@pytest.mark.parametrize(
    ("parameters", "args", "words"),
    [
        (".param .u64 out, .param .u32 n", [], "takes 2 arguments, 1 were given"),
        (".param .u64 out, .param .u32 n", ["x"], "argument n takes .u32, str was given"),
        (".param .u64 out, .param .u32 n", [1 << 33], "does not fit"),
        (".param .u64 out, .param .s32 n", [1.5], "1.5 is no integer"),
        (".param .u64 out, .param .align 4 .b8 s[8]", [b"123"], "takes 8 bytes, 3 were given"),
    ],
)
def test_arguments_that_do_not_fit(parameters: str, args: list[Any], words: str) -> None:
    with pytest.raises(FluxError, match=re.escape(words)):
        run("", np.zeros(1, np.float32), parameters=parameters, args=args)


def test_arguments_are_converted_by_the_kernels_types() -> None:
    parameters = ".param .u64 out, .param .f32 a, .param .s16 b, .param .align 4 .b8 s[8], .param .f64 d, .param .b32 u"
    body = """ld.param.f32 %f1, [a]; ld.param.s16 %r5, [b]; cvt.rn.f32.s32 %f2, %r5; ld.param.f32 %f3, [s+4]; ld.param.f64 %fd1, [d];
      cvt.rn.f32.f64 %f4, %fd1; add.f32 %f1, %f1, %f2; add.f32 %f1, %f1, %f3; add.f32 %f1, %f1, %f4; ld.param.b32 %f5, [u]; add.f32 %f1, %f1, %f5;
      st.global.f32 [%rd1], %f1;"""
    args = [np.float32(0.5), -3, np.array([1, 100], np.float32), 0.25, np.float32(1000)]
    assert run(body, np.zeros(1, np.float32), block=1, parameters=parameters, args=args)[0].tolist() == [1097.75]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("frobnicate.u32 %r1, %r2;", "FX0710", "no instruction `frobnicate`"),
        ("add.u33 %r1, %r2, %r3;", "FX0710", "add"),
        ("bra NOWHERE;", "FX0711", "no label `NOWHERE`"),
        ("add.u32 %r1, %nothing, 1;", "FX0711", "%nothing"),
        ("ld.global.u32 %r1, [nobody];", "FX0711", "`nobody` is not declared"),
        ("tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [t, {%f1,%f2}];", "FX0710", "no instruction `tex`"),
    ],
)
def test_what_is_not_executed_is_named_with_its_line(body: str, code: str, words: str) -> None:
    with pytest.raises(FluxError, match=re.escape(words)) as caught:
        run(body, np.zeros(1, np.uint32))
    assert caught.value.code == code and re.search(r"line \d+", str(caught.value))


def test_text_that_is_no_ptx() -> None:
    gpu = vgpu.Device("sm_80")
    for text in (
        "hello",
        ".version 8.0 .target sm_80 .entry k( {",
        ".version 8.0\n.entry k() { add.u32 %r1 %r2; }",
        "\x00\x01",
    ):
        with pytest.raises(FluxError) as caught:
            gpu.load(text)
        assert caught.value.code == "FX0711"
    with pytest.raises(FluxError, match="no kernel 'missing'"):
        gpu.load(kernel(""))["missing"]
    with pytest.raises(FluxError, match="for sm_90, and the device is sm_80"):
        gpu.load(kernel("", target="sm_90"))


def test_grids_of_three_axes_and_waves_of_blocks() -> None:
    body = """
      mov.u32 %r4, %ctaid.y; mov.u32 %r5, %nctaid.x; mad.lo.s32 %r6, %r4, %r5, %r2; mov.u32 %r7, %ctaid.z; mov.u32 %r8, %nctaid.y;
      mul.lo.s32 %r8, %r8, %r5; mad.lo.s32 %r6, %r7, %r8, %r6; mov.u32 %r9, %tid.y; mov.u32 %r10, %tid.z; mov.u32 %r11, %ntid.y;
      mad.lo.s32 %r9, %r10, %r11, %r9; mad.lo.s32 %r9, %r9, %r3, %r0; mov.u32 %r12, %ntid.z; mul.lo.s32 %r11, %r11, %r12;
      mul.lo.s32 %r11, %r11, %r3; mad.lo.s32 %r9, %r6, %r11, %r9; mul.wide.u32 %rd5, %r9, 4; add.s64 %rd5, %rd1, %rd5;
      st.global.u32 [%rd5], %r9;"""
    blocks, threads = 3 * 5 * 200, 4 * 3 * 2
    out, _ = run(body, np.zeros(blocks * threads, np.uint32), grid=(3, 5, 200), block=(4, 3, 2))
    assert (out == np.arange(len(out))).all()


def test_one_seed_one_answer() -> None:
    body = "cvt.rn.f32.u32 %f1, %r0; ex2.approx.f32 %f2, %f1; tanh.approx.f32 %f3, %f1; add.f32 %f2, %f2, %f3; st.global.f32 [%rd2], %f2;"
    first, again, other = (run(body, np.zeros(32, np.float32), seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and np.allclose(first, other, rtol=1e-3)


# ---- text from anywhere


SEED = """
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .b32 g[2] = {5, 6};
.func (.param .b32 r) f(.param .b32 x) { .reg .b32 %a<3>; ld.param.b32 %a1, [x]; add.s32 %a2, %a1, 1; st.param.b32 [r], %a2; ret; }
.visible .entry k(.param .u64 out, .param .u32 n) .maxntid 64 {
  .reg .b32 %r<9>; .reg .f32 %f<4>; .reg .b64 %rd<5>; .reg .pred %p<3>; .shared .align 4 .b32 s[64];
  ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n]; mov.u32 %r2, %tid.x; setp.ge.u32 %p1, %r2, %r1; @%p1 bra END;
  L: mul.wide.u32 %rd2, %r2, 4; add.s64 %rd3, %rd1, %rd2; mov.u32 %r7, s; shl.b32 %r3, %r2, 2; add.u32 %r7, %r7, %r3;
  st.shared.u32 [%r7], %r2; bar.sync 0; ld.shared.u32 %r4, [%r7]; shfl.sync.bfly.b32 %r5|%p2, %r4, 1, 31, -1;
  { .param .b32 a; .param .b32 v; st.param.b32 [a], %r5; call.uni (v), f, (a); ld.param.b32 %r6, [v]; }
  cvt.rn.f32.u32 %f1, %r6; fma.rn.f32 %f2, %f1, %f1, 0f3F800000; cvt.rzi.u32.f32 %r8, %f2; atom.global.add.u32 %r3, [g+4], %r8;
  st.global.u32 [%rd3], %r8; cp.async.wait_all; vote.sync.any.pred %p2, %p1, -1; @%p2 bra L;
  END: ret; }
"""


def mutants(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    tokens = re.findall(r"\s+|[\w.$%]+|.", SEED)
    words = [t for t in tokens if t.strip()]
    out = []
    for _ in range(count):
        t = list(tokens)
        for _ in range(rng.integers(1, 4)):
            i, what = int(rng.integers(len(t))), rng.integers(4)
            if what == 0:
                del t[i]
            elif what == 1:
                t[i] = words[rng.integers(len(words))]
            elif what == 2:
                t.insert(i, words[rng.integers(len(words))])
            else:
                j = int(rng.integers(len(t)))
                t[i], t[j] = t[j], t[i]
        out.append("".join(t))
    return out


def _survives(text: str) -> str:
    """Load and run text that may be anything: it works, or there is an error of ours."""
    gpu = vgpu.Device("sm_80", capacity=1 << 26)
    try:
        k = gpu.load(text)["k"]
        args = [gpu.zeros(64) if v.type.endswith("64") else 64 for _, v in k.arguments.values()]
        k.launch(1, 64, args, max_steps=5000)
    except (FluxError, vgpu.SanitizerError) as e:
        assert isinstance(e, vgpu.SanitizerError) or e.code in ("FX0710", "FX0711", "FX0707", "FX0501"), e
        return "FluxError" if isinstance(e, FluxError) else "SanitizerError"
    return "ran"


def test_mutated_ptx_runs_or_is_refused_in_words() -> None:
    assert _survives(SEED) == "ran"
    outcomes = {_survives(text) for text in mutants(1, 100)}
    assert outcomes >= {"ran", "FluxError", "SanitizerError"}


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 10))
def test_more_mutated_ptx(seed: int) -> None:
    for text in mutants(seed, 1000):
        _survives(text)


def test_sizes_that_exhaust_the_machine_are_refused() -> None:
    gpu = vgpu.Device("sm_80", capacity=1 << 26)
    head = ".version 8.0\n.target sm_80\n.address_size 64\n"
    for body, words in (
        (".entry k() { .reg .b32 %r<4000000000>; ret; }", "registers"),
        (".global .b8 x[99999999999999999999]; .entry k() { ret; }", "cannot have this size"),
        (".global .b8 x[4000000000]; .entry k() { ret; }", "no room"),
        (".entry k() { mov.b32 " + "{" * 5000, "nested too deeply"),
        (".entry k() { .local .b8 x[100000000]; ret; }", "local memory"),
        (".entry k() { .shared .b8 x[100000000]; ret; }", "static shared memory"),
        (".entry k() { L: bra L; }", "did not end within"),
    ):
        with pytest.raises((FluxError, vgpu.SanitizerError), match=words):
            gpu.load(head + body)["k"].launch(1, 32, [], max_steps=10_000)
