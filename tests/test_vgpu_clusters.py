"""Clusters on the virtual GPU: blocks that read, write and wait for each other's shared memory, and their misuse."""

from __future__ import annotations

import numpy as np
import pytest

from fluxir.runtime import vgpu
from tests.vgpu_ptx import BARRIER, SLOT, kernel, kinds, run, wait

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
