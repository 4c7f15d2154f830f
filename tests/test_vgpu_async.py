"""Asynchronous barriers and bulk copies of the virtual GPU: what they compute, and what the sanitizer says of their misuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from tests.vgpu_ptx import Array, kernel, kinds, run

BARRIER = ".shared .align 8 .b64 bar[4]; .shared .align 1024 .b8 buffer[4096];"
SLOT = "mul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9;"  # the thread's word of the first array


def wait(barrier: str, parity: str, label: str = "again") -> str:
    return (
        f"{label}: mbarrier.try_wait.parity.shared::cta.b64 %p9, [{barrier}], {parity};\n"
        f"    @%p9 bra done_{label};\n    bra {label};\ndone_{label}:\n"
    )


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


# ---- tensor maps


def tensor_copy(rank: int, nbytes: int, at: list[int], mode: str = "tile", offsets: str = "", out: bool = False) -> str:
    """Load a box at coordinates with thread 0, and copy the shared memory it is in to the second array (or store the box
    through the second map)."""
    coordinates = "{" + ", ".join(map(str, at)) + "}"
    lines = f"""
    setp.eq.u32 %p1, %r0, 0; mov.u32 %r3, buffer;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    bar.sync 0;
    @!%p1 bra wait;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {nbytes};
    cp.async.bulk.tensor.{rank}d.shared::cluster.global.{mode}.mbarrier::complete_tx::bytes [%r3], [%rd40, {coordinates}], [bar]{offsets};
wait:
    {wait("bar", "0")}
    """
    if out:
        return (
            lines
            + f"""
    @!%p1 bra end;
    cp.async.bulk.tensor.{rank}d.global.shared::cta.{mode}.bulk_group [%rd41, {coordinates}], [%r3];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
end:
    """
        )
    return (
        lines
        + f"""
    mov.u32 %r4, %r0;
copy:
    setp.ge.u32 %p3, %r4, {nbytes // 4};
    @%p3 bra end;
    shl.b32 %r5, %r4, 2; add.u32 %r6, %r3, %r5; ld.shared.u32 %r7, [%r6]; cvt.u64.u32 %rd9, %r5; add.s64 %rd9, %rd1, %rd9;
    st.global.u32 [%rd9], %r7; add.u32 %r4, %r4, 32;
    bra copy;
end:
    """
    )


def boxed(x: Array, at: list[int], box: list[int], steps: list[int], fill: float = 0) -> Array:
    """The box of a tensor at coordinates (innermost first), by hand."""
    grids = np.meshgrid(*[a + np.arange(0, b, s) for a, b, s in zip(at[::-1], box[::-1], steps[::-1])], indexing="ij")
    inside = np.logical_and.reduce([(g >= 0) & (g < n) for g, n in zip(grids, x.shape)])
    return np.where(inside, x[tuple(np.where(inside, g, 0) for g in grids)], x.dtype.type(fill))


BOXES: list[tuple[tuple[int, ...], list[int], list[int], list[int]]] = [  # shape, coordinates and box from the innermost dimension
    ((60,), [40], [32], [1]), ((9, 20), [16, -2], [8, 6], [1, 1]), ((4, 5, 12), [-4, 3, 2], [8, 4, 3], [1, 1, 1]),
    ((3, 3, 4, 8), [0, 1, -1, 1], [8, 2, 3, 2], [1, 1, 1, 1]), ((2, 3, 3, 4, 8), [4, 1, 1, 1, 0], [4, 2, 3, 2, 2], [1] * 5),
    ((12, 24), [1, 1], [16, 7], [2, 3]),
]  # fmt: skip


def strides(x: Array) -> list[int]:
    return list(x.strides[::-1][1:])


@pytest.mark.parametrize("case", BOXES, ids=lambda c: f"{len(c[0])}d")
def test_boxes_of_tensors(case: tuple[tuple[int, ...], list[int], list[int], list[int]]) -> None:
    shape, at, box, steps = case
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    wanted = boxed(x, at, box, steps)

    def make(there: list[vgpu.DeviceArray], i: int = 0) -> bytes:
        return vgpu.tensor_map(7, len(shape), there[i].address, shape[::-1], strides(x), box, steps)

    text = kernel(tensor_copy(len(shape), wanted.nbytes, at), 2, shared=BARRIER, maps=1)
    (_, out), report = run(text, [x, np.zeros(wanted.size, np.float32)], maps=[make])
    np.testing.assert_array_equal(out.reshape(wanted.shape), wanted)
    inside = np.count_nonzero(wanted)
    assert report.counters.bytes["global load"] == 4 * inside
    # and back out: only what is inside is written
    text = kernel(tensor_copy(len(shape), wanted.nbytes, at, out=True), 2, shared=BARRIER, maps=2)
    (_, out), _ = run(text, [x, np.zeros_like(x)], maps=[make, lambda there: make(there, 1)])
    np.testing.assert_array_equal(out, np.where(np.isin(x, wanted), x, 0))


@pytest.mark.parametrize("swizzle", [1, 2, 3])
def test_swizzles_exchange_chunks_of_16_bytes(swizzle: int) -> None:
    span = 16 << swizzle
    x = np.arange(16 * span // 2, dtype=np.uint16).reshape(16, span // 2)
    text = kernel(tensor_copy(2, x.nbytes, [0, 0]), 2, shared=BARRIER, maps=1)

    def make(there: list[vgpu.DeviceArray]) -> bytes:
        return vgpu.tensor_map(6, 2, there[0].address, x.shape[::-1], strides(x), x.shape[::-1], swizzle=swizzle)

    (_, out), _ = run(text, [x, np.zeros_like(x)], maps=[make])
    chunks, found = x.reshape(-1, 8), out.reshape(-1, 8)
    for i, chunk in enumerate(chunks):
        line = i * 16 // 128
        np.testing.assert_array_equal(found[i ^ line % (1 << swizzle)], chunk)


def test_elements_outside_are_zero_or_nan_and_subnormals_are_flushed() -> None:
    x = np.array([[1, 2, 1e-40, 4]], np.float32)
    text = kernel(tensor_copy(2, 64, [2, 0]), 2, shared=BARRIER, maps=1)
    for kind, fill, wanted in ((7, 1, [1e-40, 4, np.nan, np.nan]), (10, 0, [0, 4, 0, 0])):

        def make(there: list[vgpu.DeviceArray], kind: int = kind, fill: int = fill) -> bytes:
            return vgpu.tensor_map(kind, 2, there[0].address, (4, 1), (16,), (4, 4), fill=fill)

        (_, out), _ = run(text, [x, np.zeros((4, 4), np.float32)], maps=[make])
        np.testing.assert_array_equal(out[0], np.array(wanted, np.float32))


def test_im2col_takes_pixels_in_order() -> None:
    n, h, w, c = 2, 5, 6, 8
    x = np.arange(1, 1 + n * h * w * c, dtype=np.float32).reshape(n, h, w, c)
    pixels, at, shift = 24, [0, -1, -1, 0], (2, 1)  # a 3x3 window: its tap (w, h) = (2, 1)
    wanted = []
    order = [(i, y, z) for i in range(n) for y in range(-1, h - 1) for z in range(-1, w - 1)]
    for i, y, z in order[:pixels]:
        y, z = y + shift[1], z + shift[0]
        wanted.append(x[i, y, z] if 0 <= y < h and 0 <= z < w else np.zeros(c))
    body = tensor_copy(4, pixels * c * 4, at, mode="im2col", offsets=", {%h1, %h2}")
    body = f"mov.u16 %h1, {shift[0]}; mov.u16 %h2, {shift[1]};" + body

    def make(there: list[vgpu.DeviceArray]) -> bytes:
        return vgpu.tensor_map_im2col(7, 4, there[0].address, (c, w, h, n), strides(x), (-1, -1), (-1, -1), c, pixels)

    (_, out), _ = run(kernel(body, 2, shared=BARRIER, maps=1), [x, np.zeros(pixels * c, np.float32)], maps=[make])
    np.testing.assert_array_equal(out.reshape(pixels, c), np.array(wanted))


def test_tensor_reductions_add_where_the_box_is() -> None:
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    body = tensor_copy(2, 256, [0, 4], out=True).replace(
        "cp.async.bulk.tensor.2d.global", "cp.reduce.async.bulk.tensor.2d.global"
    )
    body = body.replace("shared::cta.tile", "shared::cta.add.tile")

    def make(there: list[vgpu.DeviceArray]) -> bytes:
        return vgpu.tensor_map(7, 2, there[0].address, (8, 8), (32,), (8, 8))

    (out, _), _ = run(kernel(body, 2, shared=BARRIER, maps=2), [x, x], maps=[make, make])
    np.testing.assert_array_equal(out, np.concatenate([x[:4], 2 * x[4:]]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"box": (8, 300)}, "1 to 256"), ({"strides": (33,)}, "multiples of 16"), ({"box": (3, 8)}, "12 bytes"),
        ({"swizzle": 1, "box": (16, 8)}, "swizzle"), ({"interleave": 1}, "interleaved"), ({"address": 8}, "multiple of 16"),
        ({"data_type": 77}, "data type"), ({"sizes": (0, 8)}, "sizes"), ({"element_strides": (1, 9)}, "element strides"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_map_is_refused(arguments: dict[str, Any], says: str) -> None:
    fine: dict[str, Any] = {"data_type": 7, "rank": 2, "address": 0, "sizes": (8, 8), "strides": (32,), "box": (8, 8)}
    assert len(vgpu.tensor_map(**fine)) == 128
    with pytest.raises(FluxError, match=says) as found:
        vgpu.tensor_map(**(fine | arguments))
    assert found.value.code == "FX0711"


def test_misuse_of_tensor_maps_is_found() -> None:
    x = np.zeros((8, 8), np.float32)
    text = kernel(tensor_copy(2, 256, [0, 0]), 2, shared=BARRIER, maps=1)

    def make(there: list[vgpu.DeviceArray]) -> bytes:
        return vgpu.tensor_map(7, 2, there[0].address, (8, 9), (32,), (8, 9))

    for change, map_, kind in (
        (("", ""), lambda there: bytes(128), "uninitialised"),
        (("[%r3], [%rd40", "[%r3+16], [%rd40"), make, "misaligned"),
        (
            ("2d.shared::cluster.global.tile", "1d.shared::cluster.global.tile"),
            make,
            "out-of-bounds",
        ),  # the map has 2 dimensions
        (("", ""), make, "out-of-bounds"),  # and one row more than the array
    ):
        changed = text.replace(*change).replace(
            "[%rd40, {0, 0}]", "[%rd40, {0}]" if "1d" in change[1] else "[%rd40, {0, 0}]"
        )
        _, report = run(changed, [x, np.zeros(64, np.float32)], check="collect", maps=[map_])
        assert kind in kinds(report), (change, report.findings)


# ---- clusters

PAIR = ".reqnctapercluster 2"
ROTATE = """
    mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, buffer; shl.b32 %r4, %r0, 2; add.u32 %r5, %r3, %r4;
    mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ntid.x; mad.lo.u32 %r8, %r6, %r7, %r0; mul.wide.u32 %rd9, %r8, 4; add.s64 %rd9, %rd0, %rd9;
    ld.global.u32 %r9, [%rd9]; st.shared.u32 [%r5], %r9;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    xor.b32 %r10, %r2, 1;
    mapa.shared::cluster.u32 %r11, %r5, %r10;
    ld.shared::cluster.u32 %r12, [%r11];
    getctarank.shared::cluster.u32 %r13, %r11; getctarank.shared::cluster.u32 %r14, %r5;
    mad.lo.u32 %r12, %r13, 1000, %r12; mad.lo.u32 %r12, %r14, 10000, %r12;
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    st.global.u32 [%rd9], %r12;
"""


def test_blocks_of_a_cluster_read_each_others_memory() -> None:
    x = np.arange(4 * 64, dtype=np.uint32).reshape(4, 64)
    text = kernel(ROTATE, 1, shared=BARRIER, limits=PAIR)
    (out,), report = run(text, [x], grid=4, block=64)
    rank = np.arange(4) % 2
    np.testing.assert_array_equal(out, x[np.arange(4) ^ 1] + (1000 * (1 - rank) + 10000 * rank)[:, None])
    assert report.counters.requests["cluster load"] == 8
    generic = text.replace("mapa.shared::cluster.u32 %r11, %r5, %r10;",
                           "cvt.u64.u32 %rd5, %r5; cvta.shared.u64 %rd5, %rd5; mapa.u64 %rd6, %rd5, %r10;")  # fmt: skip
    generic = generic.replace("ld.shared::cluster.u32 %r12, [%r11]", "ld.u32 %r12, [%rd6]")
    generic = generic.replace("getctarank.shared::cluster.u32 %r13, %r11", "getctarank.u64 %r13, %rd6")
    np.testing.assert_array_equal(run(generic, [x], grid=4, block=64)[0][0], out)


def test_a_cluster_lies_together_in_any_shape() -> None:
    """The other block along y, in a grid where it is not the next one."""
    body = """
    mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %nctaid.x; mad.lo.u32 %r5, %r2, %r4, %r3; st.shared.u32 [buffer], %r5;
    barrier.cluster.arrive; barrier.cluster.wait;
    mov.u32 %r6, %cluster_ctarank; xor.b32 %r7, %r6, 2; mov.u32 %r8, buffer; mapa.shared::cluster.u32 %r9, %r8, %r7;
    ld.shared::cluster.u32 %r10, [%r9]; mul.wide.u32 %rd9, %r5, 4; add.s64 %rd9, %rd0, %rd9; st.global.u32 [%rd9], %r10;
    barrier.cluster.arrive; barrier.cluster.wait;
    """
    text = kernel(body, 1, shared=BARRIER, limits=".reqnctapercluster 2, 2, 1")
    (out,), _ = run(text, [np.zeros((4, 6), np.uint32)], grid=(6, 4), block=1)
    np.testing.assert_array_equal(out, np.arange(24).reshape(4, 6)[[1, 0, 3, 2]])


BOTH = "    barrier.cluster.arrive.aligned;\n    barrier.cluster.wait.aligned;\n"
LAST = "    barrier.cluster.arrive.release.aligned;\n    barrier.cluster.wait.acquire.aligned;\n"


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        (BOTH, "    bar.sync 0;\n", "shared-race", "read after write"),
        (LAST, "    st.shared.u32 [%r5], %r12;\n" + LAST, "shared-race", "write after read"),
        (LAST, LAST + "    st.shared.u32 [%r5], %r12;\n", "", ""),
        ("xor.b32 %r10, %r2, 1;", "add.u32 %r10, %r2, 1;", "out-of-bounds", "block 2 of a cluster of 2"),
        ("ld.shared::cluster.u32 %r12, [%r11]", "ld.shared::cluster.u32 %r12, [%r11+4096]", "out-of-bounds", "past the end of `buffer`"),
        (BOTH, "    setp.eq.u32 %p1, %r2, 0;\n    @%p1 ret;\n    barrier.cluster.arrive.aligned;\n    barrier.cluster.wait.aligned;\n",
         "out-of-bounds", "its block has ended"),
        (BOTH, "    barrier.cluster.wait.aligned;\n", "divergent-barrier", "has not arrived"),
        (BOTH, "    barrier.cluster.arrive.aligned;\n" + BOTH, "divergent-barrier", "arrives again"),
        (BOTH, "    setp.eq.u32 %p1, %r2, 0;\n    @%p1 bra out;\n" + BOTH + "out:\n", "shared-race", "read after write"),
        (BOTH, "    setp.eq.u32 %p1, %r0, 0;\n    @%p1 bra out;\n" + BOTH + "out:\n", "absent-lanes", "lanes 0 do not"),
    ],
)  # fmt: skip
def test_misuse_of_clusters_is_found(old: str, new: str, kind: str, says: str) -> None:
    text = kernel(ROTATE, 1, shared=BARRIER, limits=PAIR)
    assert old in text
    _, report = run(text.replace(old, new, 1), [np.zeros((4, 64), np.uint32)], grid=4, block=64, check="collect")
    found = [f for f in report.findings if f.kind == kind]
    assert bool(found) == bool(kind), report.findings
    assert not says or any(says in f.message for f in found), found


def test_a_cluster_barrier_that_not_all_reach_is_a_deadlock() -> None:
    body = f"""
    mov.u32 %r2, %cluster_ctarank; setp.eq.u32 %p1, %r2, 1;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    @!%p1 bra arrive;
    {wait("bar", "0")}
arrive:
    barrier.cluster.arrive; barrier.cluster.wait;
    """
    _, report = run(kernel(body, 1, shared=BARRIER, limits=PAIR), [np.zeros(1, np.uint32)], grid=2, check="collect")
    assert [f.kind for f in report.findings] == ["deadlock"]


SEND = f"""
    mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, buffer; mov.u32 %r15, bar; setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.relaxed; barrier.cluster.wait.acquire;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 256;
    setp.eq.u32 %p2, %r2, 0; and.pred %p2, %p1, %p2;
    @!%p2 bra receive;
    SENT
receive:
    {wait("bar", "0")}
    shl.b32 %r4, %r0, 2; add.u32 %r5, %r3, %r4; ld.shared.u32 %r6, [%r5+512];
    mov.u32 %r8, %ctaid.x; mad.lo.u32 %r8, %r8, 64, %r0; mul.wide.u32 %rd9, %r8, 4; add.s64 %rd9, %rd0, %rd9; st.global.u32 [%rd9], %r6;
    barrier.cluster.arrive; barrier.cluster.wait;
"""


def test_a_multicast_goes_to_all_blocks_of_its_mask() -> None:
    sent = """mov.u16 %h0, 3;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r3+512], [%rd1], 256, [bar], %h0;"""
    x = np.arange(64, dtype=np.uint32)
    text = kernel(SEND.replace("SENT", sent), 2, shared=BARRIER, limits=PAIR)
    (out, _), report = run(text, [np.zeros((2, 64), np.uint32), x], grid=2, block=64)
    np.testing.assert_array_equal(out, np.stack([x, x]))
    assert report.counters.bytes["global load"] == 256  # fetched once
    tensor = """mov.u16 %h0, 3;
    cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r3+512], [%rd40, {0}], [bar], %h0;"""
    text = kernel(SEND.replace("SENT", tensor), 2, shared=BARRIER, limits=PAIR, maps=1)
    (out, _), _ = run(
        text, [np.zeros((2, 64), np.uint32), x], grid=2, block=64, maps=[lambda t: vgpu.tensor_map(2, 1, t[1].address, (64,), (), (64,))]
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.stack([x, x]))


def test_blocks_copy_into_each_others_memory() -> None:
    sent = """
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3+512], [%rd1], 256, [bar];
    WAIT
    mov.u32 %r10, 1; mapa.shared::cluster.u32 %r11, %r3, %r10; mapa.shared::cluster.u32 %r12, %r15, %r10; add.u32 %r13, %r3, 512;
    cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r11+512], [%r13], 256, [%r12];
    """.replace("WAIT", wait("bar", "0", "mine"))
    x = np.arange(64, dtype=np.uint32)
    text = kernel(SEND.replace("SENT", sent), 2, shared=BARRIER, limits=PAIR)
    (out, _), _ = run(text, [np.zeros((2, 64), np.uint32), x], grid=2, block=64)
    np.testing.assert_array_equal(out, np.stack([x, x]))


def test_a_block_arrives_at_another_ones_mbarrier() -> None:
    body = f"""
    mov.u32 %r2, %cluster_ctarank; mov.u32 %r15, bar; setp.eq.u32 %p1, %r0, 0; mov.u32 %r3, 0;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 64;
    barrier.cluster.arrive; barrier.cluster.wait;
    mapa.shared::cluster.u32 %r4, %r15, %r3; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4];
    setp.eq.u32 %p2, %r2, 0;
    @!%p2 bra end;
    {wait("bar", "0")}
    {SLOT} st.global.u32 [%rd9], %r0;
end:
    barrier.cluster.arrive; barrier.cluster.wait;
    """
    (out,), _ = run(kernel(body, 1, shared=BARRIER, limits=PAIR), [np.zeros(32, np.uint32)], grid=2)
    assert out.tolist() == list(range(32))


def test_threads_store_into_another_blocks_memory_and_its_mbarrier_counts_the_bytes() -> None:
    """Rank 1 sends every thread's number twice and its sum to rank 0, which waits for all the bytes."""
    body = f"""
    mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, buffer; mov.u32 %r15, bar; setp.eq.u32 %p1, %r0, 0; mov.u32 %r9, 0;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    @%p1 st.shared.u32 [buffer], %r9;
    barrier.cluster.arrive; barrier.cluster.wait;
    setp.eq.u32 %p2, %r2, 0; and.pred %p3, %p1, %p2;
    @%p3 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {32 * 8 + 32 * 4};
    mapa.shared::cluster.u32 %r4, %r3, 0; mapa.shared::cluster.u32 %r5, %r15, 0; shl.b32 %r6, %r0, 3; add.u32 %r6, %r6, %r4;
    @!%p2 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r6+64], {{%r0, %r0}}, [%r5];
    @!%p2 red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r4], %r0, [%r5];
    @!%p2 bra end;
    {wait("bar", "0")}
    shl.b32 %r6, %r0, 3; add.u32 %r6, %r6, %r3; ld.shared.v2.u32 {{%r7, %r8}}, [%r6+64]; ld.shared.u32 %r10, [buffer];
    mad.lo.u32 %r7, %r7, 1000, %r8; add.u32 %r7, %r7, %r10;
    {SLOT} st.global.u32 [%rd9], %r7;
end:
    barrier.cluster.arrive; barrier.cluster.wait;
    """
    text = kernel(body, 1, shared=BARRIER, limits=PAIR)
    (out,), report = run(text, [np.zeros(32, np.uint32)], grid=2)
    assert out.tolist() == [1001 * i + 31 * 16 for i in range(32)]
    assert report.counters.requests["cluster store"] == report.counters.requests["cluster atomic"] == 1
    _, report = run(text.replace(wait("bar", "0"), ""), [np.zeros(32, np.uint32)], grid=2, check="collect")
    assert {"async-copy"} <= kinds(report)


def test_bulk_reductions_of_two_blocks_meet_in_one() -> None:
    sent = """
    mapa.shared::cluster.u32 %r11, %r3, 0; mapa.shared::cluster.u32 %r12, %r15, 0;
    cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%r11+512], [%r3], 256, [%r12];
    """
    text = (
        SEND.replace("SENT", sent)
        .replace("_, [bar], 256", "_, [bar], 512")
        .replace("and.pred %p2, %p1, %p2", "mov.pred %p2, %p1")
    )
    fill = """shl.b32 %r4, %r0, 2; add.u32 %r5, %r3, %r4; st.shared.u32 [%r5], %r0; add.u32 %r6, %r2, 100; st.shared.u32 [%r5+512], %r6;
    fence.proxy.async; barrier.cluster.arrive.relaxed"""
    text = text.replace("barrier.cluster.arrive.relaxed", fill)
    text = text.replace("receive:", "receive:\n    setp.ne.u32 %p4, %r2, 0;\n    @%p4 bra end;")
    text = text.replace(
        "    barrier.cluster.arrive; barrier.cluster.wait;", "end:\n    barrier.cluster.arrive; barrier.cluster.wait;"
    )
    (out, _), _ = run(
        kernel(text, 2, shared=BARRIER, limits=PAIR),
        [np.zeros((2, 64), np.uint32), np.zeros(1, np.uint32)],
        grid=2,
        block=64,
    )
    assert out[0].tolist() == [100 + 2 * i for i in range(64)]
