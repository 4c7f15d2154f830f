"""Asynchronous barriers and bulk copies of the virtual GPU: what they compute, and what the sanitizer says of their misuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.runtime import vgpu
from tests.vgpu_ptx import BARRIER, SLOT, kernel, kinds, run, wait

# ---- mbarriers


def one_thread(steps: str, results: int) -> list[int]:
    """Run a thread on an mbarrier for two arrivals; it leaves its results in %r10, %r11, ..."""
    body = "mbarrier.init.shared::cta.b64 [bar], 2;\n" + steps + "\n"
    body += "\n".join(f"st.global.b32 [%rd0+{4 * i}], %r{10 + i};" for i in range(results))
    (out,), _ = run(kernel(body, 1, shared=BARRIER), [np.full(results, -1, np.int32)], block=1)
    return [int(v) for v in out]


def test_a_phase_ends_with_its_last_arrival() -> None:
    steps = """
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r10, 1, 0, %p0;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 1; selp.u32 %r11, 1, 0, %p0;
    mbarrier.arrive.shared.b64 %rd5, [bar];
    mbarrier.test_wait.shared.b64 %p0, [bar], %rd5; selp.u32 %r12, 1, 0, %p0;
    mbarrier.pending_count.b64 %r13, %rd5;
    mbarrier.arrive.release.cta.shared::cta.b64 %rd6, [bar];
    mbarrier.test_wait.acquire.cta.shared::cta.b64 %p0, [bar], %rd5; selp.u32 %r14, 1, 0, %p0;
    mbarrier.pending_count.b64 %r15, %rd6;
    mbarrier.arrive.shared.b64 %rd7, [bar], 2;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 1; selp.u32 %r16, 1, 0, %p0;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r17, 1, 0, %p0;
    """
    assert one_thread(steps, 8) == [0, 1, 0, 2, 1, 1, 1, 0]


def test_expected_bytes_hold_a_phase_back() -> None:
    steps = """
    mbarrier.arrive.expect_tx.shared.b64 _, [bar], 96;
    mbarrier.arrive.shared.b64 _, [bar];
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r10, 1, 0, %p0;
    mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 32;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 100;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r11, 1, 0, %p0;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 28;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r12, 1, 0, %p0;
    """
    assert one_thread(steps, 3) == [0, 0, 1]


def test_those_who_drop_out_are_not_expected_again() -> None:
    steps = """
    mbarrier.arrive_drop.shared.b64 %rd5, [bar];
    mbarrier.arrive.noComplete.shared.b64 %rd6, [bar+8], 1;
    mbarrier.arrive.shared.b64 %rd5, [bar];
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r10, 1, 0, %p0;
    mbarrier.arrive.shared.b64 %rd5, [bar];
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 1; selp.u32 %r11, 1, 0, %p0;
    mbarrier.pending_count.b64 %r12, %rd5;
    """
    assert one_thread("mbarrier.init.shared.b64 [bar+8], 3;\n" + steps, 3) == [1, 1, 1]


def test_the_state_moves_with_its_bytes() -> None:
    steps = """
    mbarrier.arrive.shared.b64 %rd5, [bar];
    ld.shared.b64 %rd6, [bar]; st.shared.b64 [bar+16], %rd6;
    mbarrier.arrive.shared.b64 %rd5, [bar+16];
    mbarrier.test_wait.parity.shared.b64 %p0, [bar+16], 0; selp.u32 %r10, 1, 0, %p0;
    mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0; selp.u32 %r11, 1, 0, %p0;
    """
    assert one_thread(steps, 2) == [1, 0]


PRODUCER = f"""
    {SLOT}
    setp.ne.u32 %p1, %r0, 0;
    @!%p1 mbarrier.init.shared::cta.b64 [bar], 32;
    bar.sync 0;
    setp.lt.u32 %p2, %r0, 32;
    mov.u32 %r3, buffer; and.b32 %r4, %r0, 31; shl.b32 %r5, %r4, 2; add.u32 %r6, %r3, %r5;
    sub.u32 %r7, 31, %r4; shl.b32 %r7, %r7, 2; add.u32 %r7, %r3, %r7;
    @!%p2 bra consume;
    ld.global.u32 %r8, [%rd9]; st.shared.u32 [%r6], %r8;
    mbarrier.arrive.shared::cta.b64 _, [bar];
    bra end;
consume:
    {wait("bar", "0")}
    ld.shared.u32 %r8, [%r7]; st.global.u32 [%rd9], %r8;
end:
"""


def test_a_consumer_waits_for_what_producers_wrote() -> None:
    x = np.arange(64, dtype=np.uint32)
    (out,), report = run(kernel(PRODUCER, 1, shared=BARRIER), [x], block=64)
    np.testing.assert_array_equal(out, np.concatenate([x[:32], x[:32][::-1]]))
    assert report.counters.by_class["barrier"] >= 4


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        ("    bar.sync 0;", "", "shared-race", "write after write"),  # nobody knows that it is there
        ("    @!%p1 mbarrier.init", "    @%p1 mbarrier.init", "", ""),  # 63 initialise it; still right
        ("[bar], 32;", "[bar], 33;", "deadlock", "1 arrivals missing"),
        ("[bar], 32;", "[bar], 16;", "deadlock", "16 arrivals missing"),  # two phases end, and the parity is the old one
        ("[bar], 32;", "[bar], 0;", "limit", "0"),
        ("b64 [bar], 32;", "b64 [bar+4], 32;", "misaligned", "multiple of 8"),
        ("mbarrier.arrive.shared::cta.b64 _, [bar];", "mbarrier.arrive.shared::cta.b64 _, [bar+8];", "uninitialised", ""),
        ("mbarrier.arrive.shared::cta.b64 _, [bar];", "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [bar];", "shared-race", ""),
        ("[bar], 0;", "[bar], 1;", "deadlock", "32 arrivals missing"),  # the phase after the one that ends
        ("mbarrier.arrive.shared::cta.b64 _, [bar];", "mbarrier.arrive.shared::cta.b64 _, [bar], 5;", "limit", "no more arrivals"),
        ("    bra end;", "    mbarrier.inval.shared.b64 [bar];\n    bra end;", "uninitialised", "inval"),
    ],
)  # fmt: skip
def test_misuse_of_an_mbarrier_is_found(old: str, new: str, kind: str, says: str) -> None:
    text = kernel(PRODUCER, 1, shared=BARRIER)
    assert old in text
    _, report = run(text.replace(old, new, 1), [np.zeros(64, np.uint32)], block=64, check="collect")
    found = [f for f in report.findings if f.kind == kind]
    assert bool(found) == bool(kind), report.findings
    if not kind:
        assert not report.findings or kinds(report) == {"shared-race"}
    assert not says or any(says in f.message for f in found), found


def test_a_ring_of_stages_runs_far() -> None:
    """More waits that fail than a loop may spin: other threads make progress, so it is no deadlock."""
    body = f"""
    setp.ne.u32 %p1, %r0, 0; setp.lt.u32 %p2, %r0, 32; mov.u32 %r3, 0; mov.u32 %r4, 0;
    @!%p1 mbarrier.init.shared::cta.b64 [bar], 1; @!%p1 mbarrier.init.shared::cta.b64 [bar+8], 32;
    bar.sync 0;
loop:
    and.b32 %r5, %r3, 1; xor.b32 %r6, %r5, 1;
    @!%p2 bra consume;
    @%p1 bra next;
    {wait("bar+8", "%r6", "empty")}
    st.shared.u32 [buffer], %r3; mbarrier.arrive.shared::cta.b64 _, [bar];
    bra next;
consume:
    {wait("bar", "%r5", "full")}
    ld.shared.u32 %r7, [buffer]; add.u32 %r4, %r4, %r7;
    mbarrier.arrive.shared::cta.b64 _, [bar+8];
next:
    add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 300;
    @%p3 bra loop;
    {SLOT} st.global.u32 [%rd9], %r4;
    """
    (out,), _ = run(kernel(body, 1, shared=BARRIER), [np.zeros(64, np.uint32)], block=64)
    assert (out[32:] == 300 * 299 // 2).all()


# ---- cp.async on an mbarrier


@pytest.mark.parametrize(("noinc", "count"), [(".noinc", 32), ("", 1)])
def test_copies_of_threads_arrive_at_an_mbarrier(noinc: str, count: int) -> None:
    body = f"""
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared.b64 [bar], {count};
    bar.sync 0;
    mov.u32 %r3, buffer; shl.b32 %r4, %r0, 4; add.u32 %r5, %r3, %r4; cvt.u64.u32 %rd8, %r4; add.s64 %rd8, %rd1, %rd8;
    cp.async.cg.shared.global [%r5], [%rd8], 16;
    cp.async.mbarrier.arrive{noinc}.shared.b64 [bar];
    {"@%p1 mbarrier.arrive.shared.b64 _, [bar];" if not noinc else ""}
    {wait("bar", "0")}
    sub.u32 %r6, 31, %r0; shl.b32 %r6, %r6, 4; add.u32 %r6, %r6, %r3; ld.shared.u32 %r7, [%r6];
    {SLOT} st.global.u32 [%rd9], %r7;
    """
    x = np.arange(128, dtype=np.uint32)
    (out, _), _ = run(kernel(body, 2, shared=BARRIER), [np.zeros(32, np.uint32), x])
    np.testing.assert_array_equal(out, x[::4][::-1])
    early = body.replace(wait("bar", "0"), "")
    _, report = run(kernel(early, 2, shared=BARRIER), [np.zeros(32, np.uint32), x], check="collect")
    assert "async-copy" in kinds(report)


# ---- bulk copies

COPY = f"""
    setp.eq.u32 %p1, %r0, 0; mov.u32 %r3, buffer;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    bar.sync 0;
    @!%p1 bra wait;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 512;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], 512, [bar];
wait:
    {wait("bar", "0")}
    shl.b32 %r4, %r0, 2; add.u32 %r4, %r4, %r3;
    ld.shared.u32 %r5, [%r4]; add.u32 %r5, %r5, 7; st.shared.u32 [%r4], %r5;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    @!%p1 bra end;
    cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r3], 512;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
end:
"""


def test_bulk_copies_in_and_out() -> None:
    x = np.arange(128, dtype=np.uint32)
    (out, _), report = run(kernel(COPY, 2, shared=BARRIER), [np.zeros(128, np.uint32), x], block=128)
    np.testing.assert_array_equal(out, x + 7)
    c = report.counters
    assert c.bytes["global load"] == c.bytes["global store"] == 512 and c.requests["global load"] == 1
    assert c.sectors["global load"] == 16 and c.bank_conflicts == 0


ARRIVE = "    mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 512;\n"


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        (wait("bar", "0"), "", "async-copy", "was not waited for"),
        (wait("bar", "0"), wait("bar", "1"), "async-copy", "was not waited for"),
        ("[bar], 512;\n    cp", "[bar], 528;\n    cp", "deadlock", "16 bytes missing"),
        (ARRIVE, "", "deadlock", "1 arrivals and -512 bytes missing"),
        ("[%rd1], 512", "[%rd1], 500", "misaligned", "multiple of 16"),
        ("[%rd1], 512", "[%rd1+4], 512", "misaligned", "multiple of 16"),
        ("[%rd1], 512", "[%rd1+16], 512", "out-of-bounds", "past the end"),
        ("[%r3], [%rd1]", "[%r3+3600], [%rd1]", "out-of-bounds", "past the end of `buffer`"),
        ("[%rd0], [%r3], 512", "[%rd0], [%r3+256], 512", "uninitialised", "nobody has written"),
        ("[%rd0], [%r3], 512", "[%rd0+256], [%r3], 512", "out-of-bounds", ""),
        ("    bar.sync 0;\n    @!%p1 bra end;", "    @!%p1 bra end;", "shared-race", "nothing orders"),
        ("    fence.proxy.async.shared::cta;\n", "", "async-copy", "no `fence.proxy.async`"),
        ("    fence.proxy.async.shared::cta;\n    bar.sync 0;\n", "    bar.sync 0;\n    fence.proxy.async;\n", "", ""),
        ("    cp.async.bulk.wait_group 0;\n", "", "async-copy", "nobody waited"),
        ("    cp.async.bulk.wait_group 0;\n", "    cp.async.bulk.wait_group.read 0;\n", "", ""),
        ("    cp.async.bulk.commit_group;\n", "", "async-copy", "nobody waited"),
        ("    cp.async.bulk.wait_group 0;", "    st.shared.u32 [%r3], %r5; cp.async.bulk.wait_group 0;", "async-copy", "still reads it"),
        ("    cp.async.bulk.wait_group 0;", "    cp.async.bulk.wait_group 0; st.shared.u32 [%r3], %r5;", "", ""),
    ],
)  # fmt: skip
def test_misuse_of_bulk_copies_is_found(old: str, new: str, kind: str, says: str) -> None:
    text = kernel(COPY, 2, shared=BARRIER)
    assert old in text
    arrays = [np.zeros(128, np.uint32), np.arange(128, dtype=np.uint32)]
    _, report = run(text.replace(old, new, 1), arrays, block=128, check="collect")
    found = [f for f in report.findings if f.kind == kind]
    assert bool(found) == bool(kind), report.findings
    assert kind or not report.findings
    assert not says or any(says in f.message for f in found), found


def test_bulk_stores_land_at_the_wait_and_groups_are_waited_for_in_order() -> None:
    body = """
    mov.u32 %r3, buffer; mov.u32 %r5, 1; st.shared.v4.u32 [%r3], {%r5,%r5,%r5,%r5}; mov.u32 %r6, 2;
    st.shared.v4.u32 [%r3+16], {%r6,%r6,%r6,%r6}; fence.proxy.async.shared::cta;
    cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r3], 16; cp.async.bulk.commit_group;
    cp.async.bulk.global.shared::cta.bulk_group [%rd0+16], [%r3+16], 16; cp.async.bulk.commit_group;
    ld.global.u32 %r7, [%rd0]; cp.async.bulk.wait_group 1;
    ld.global.u32 %r8, [%rd0]; ld.global.u32 %r9, [%rd0+16]; cp.async.bulk.wait_group 0;
    ld.global.u32 %r10, [%rd0+16];
    st.global.v4.u32 [%rd0+32], {%r7,%r8,%r9,%r10};
    """
    (out,), _ = run(kernel(body, 1, shared=BARRIER), [np.zeros(12, np.uint32)], block=1)
    assert out.tolist() == [1] * 4 + [2] * 4 + [0, 1, 0, 2]


REDUCTIONS: list[tuple[str, str, Any, Any]] = [
    ("add", "s32", np.int32, np.add), ("min", "s32", np.int32, np.minimum), ("max", "u32", np.uint32, np.maximum),
    ("and", "b32", np.uint32, np.bitwise_and), ("xor", "b64", np.uint64, np.bitwise_xor), ("add", "u64", np.uint64, np.add),
    ("add", "f32", np.float32, np.add), ("add", "f64", np.float64, np.add), ("add.noftz", "f16", np.float16, np.add),
    ("max", "f16", np.float16, np.maximum),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "kind", "numpy_type", "combine"), REDUCTIONS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_bulk_reductions(op: str, kind: str, numpy_type: Any, combine: Any) -> None:
    rng = np.random.default_rng(4)
    n = 512 // np.dtype(numpy_type).itemsize
    x, y = rng.integers(1, 50, n).astype(numpy_type), rng.integers(1, 50, n).astype(numpy_type)
    text = COPY.replace("add.u32 %r5, %r5, 7;", "").replace(
        "cp.async.bulk.global.shared::cta.bulk_group", f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{op}.{kind}"
    )
    (out, _), report = run(kernel(text, 2, shared=BARRIER), [y, x], block=128)
    np.testing.assert_array_equal(out, combine(y, x))
    assert report.counters.requests["global atomic"] == 1


def test_prefetches_change_nothing() -> None:
    body = "cp.async.bulk.prefetch.L2.global [%rd0], 64;"
    (out,), _ = run(kernel(body, 1), [np.arange(16, dtype=np.uint32)])
    assert out.tolist() == list(range(16))


def test_a_launch_that_fails_leaves_no_mark_on_what_its_copies_read() -> None:
    """The source of a copy that never arrived can be written by the next launch."""
    gpu = vgpu.Device("sm_90a", capacity=1 << 24)
    x = gpu.array(np.arange(128, dtype=np.uint32))
    out = gpu.zeros(128, np.uint32)
    with pytest.raises(vgpu.SanitizerError):
        gpu.load(kernel(COPY.replace(wait("bar", "0"), ""), 2, shared=BARRIER))["k"].launch(1, 128, [out, x])
    gpu.load(kernel(COPY, 2, shared=BARRIER))["k"].launch(1, 128, [x, out])  # `x` is the target now
    assert x.numpy().tolist() == [7] * 128


def test_addresses_far_outside_do_no_harm_without_checks() -> None:
    body = f"{SLOT} add.s64 %rd9, %rd9, 1000000; st.global.u32 [%rd9], %r0; ld.global.u32 %r2, [%rd9];"
    (out,), report = run(kernel(body, 1), [np.arange(4, dtype=np.uint32)], check="collect")
    assert kinds(report) == {"out-of-bounds"} and out.tolist() == [0, 1, 2, 3]
    with pytest.raises(vgpu.SanitizerError, match="out-of-bounds"):  # what cannot be carried out at all is found anyway
        run(kernel(body, 1), [np.arange(4, dtype=np.uint32)], check="off")
