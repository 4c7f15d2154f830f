"""What the threads of a kernel do together: shared memory, warps, atomics, asynchronous copies, tensor cores, the grid.

Every kernel agrees between the interpreter, native CPU code and the virtual GPU (with its sanitizer on), and with numpy.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from fluxir.codegen.checks import assemble
from tests.kernel_harness import agree

RNG = np.random.default_rng(7)


def small(n: int, dtype: str = "f4") -> np.ndarray:
    """Small whole numbers: sums are exact in any order."""
    return RNG.integers(-8, 9, n).astype(dtype)


def test_a_block_reduces_in_shared_memory() -> None:
    @fx.kernel
    def total(x, out):
        part = fx.gpu.shared((64,), fx.f32)
        t = fx.gpu.thread_id.x
        acc = 0.0
        for i in range(fx.gpu.global_id.x, len(x), fx.gpu.global_size.x):
            acc += x[i]
        part[t] = acc
        fx.gpu.barrier()
        half = 32
        while half > 0:
            if t < half:
                part[t] += part[t + half]
            fx.gpu.barrier()
            half //= 2
        if t == 0:
            fx.gpu.atomic_add(out, 0, part[0])

    x = small(500)
    agree(total, 3, 64, x, np.zeros(1, "f4"), want=[[x.sum()]])


def test_a_tile_is_transposed_through_shared_memory() -> None:
    @fx.kernel
    def transpose(a: fx.f32["M", "N"], out: fx.f32["N", "M"]):
        tile = fx.gpu.shared((8, 9), fx.f32)
        tx, ty = fx.gpu.thread_id.x, fx.gpu.thread_id.y
        i, j = fx.gpu.block_id.y * 8 + ty, fx.gpu.block_id.x * 8 + tx
        if i < a.shape[0] and j < a.shape[1]:
            tile[ty, tx] = a[i, j]
        fx.gpu.barrier()
        i, j = fx.gpu.block_id.x * 8 + ty, fx.gpu.block_id.y * 8 + tx
        if i < a.shape[1] and j < a.shape[0]:
            out[i, j] = tile[tx, ty]

    a = RNG.standard_normal((13, 22)).astype("f4")
    agree(transpose, (3, 2), (8, 8), a, np.zeros((22, 13), "f4"), want=[a.T])


def test_dynamic_shared_memory_of_several_arrays() -> None:
    @fx.kernel
    def k(x, out, n: fx.i32):
        t = fx.gpu.thread_id.x
        a = fx.gpu.shared((n, 2), fx.f32)
        b = fx.gpu.shared((n,), fx.i16)
        a[t, 0] = x[t]
        a[t, 1] = x[t] * 2
        b[t] = t
        fx.gpu.barrier()
        out[t] = a[n - 1 - t, 1] - a[n - 1 - t, 0] + fx.f32(b[n - 1 - t])

    x = small(21)
    agree(k, 1, 21, x, np.zeros(21, "f4"), 21, shared=21 * 8 + 8 + 21 * 2, want=[(x + np.arange(21))[::-1]])


def test_warp_shuffles() -> None:
    @fx.kernel
    def k(x, d, h, out):
        g = fx.gpu.global_id.x
        v = x[g]
        out[0, g] = fx.gpu.shuffle_xor(v, 5)
        out[1, g] = fx.gpu.shuffle_up(v, 3)
        out[2, g] = fx.gpu.shuffle_down(v, g % 4 + 1)
        out[3, g] = fx.gpu.shuffle(v, 7 + g % 3)
        out[4, g] = fx.f32(fx.gpu.shuffle_xor(d[g], 16)) + fx.f32(fx.gpu.shuffle_down(h[g], 1))
        out[5, g] = fx.f32(fx.gpu.shuffle(fx.gpu.lane_id() * 3, 40)) + fx.f32(fx.gpu.warp_id())
        s = v
        for k in (16, 8, 4, 2, 1):
            s += fx.gpu.shuffle_xor(s, k)
        out[6, g] = s

    x, g = small(64), np.arange(64)
    lane, base = g % 32, g // 32 * 32
    d, h = small(64, "f8"), small(64, "f2")

    def at(i: np.ndarray) -> np.ndarray:
        return np.where((i >= 0) & (i < 32), base + i, g)

    want = [x[at(lane ^ 5)], x[at(lane - 3)], x[at(lane + g % 4 + 1)], x[base + 7 + g % 3]]
    want.append((d[at(lane ^ 16)] + h[at(lane + 1)]).astype("f4"))
    want.append(8 * 3 + g // 32)
    want.append(np.repeat([x[:32].sum(), x[32:].sum()], 32))
    agree(k, 1, 64, x, d, h, np.zeros((7, 64), "f4"), want=[np.stack(want)])


def test_warp_votes_and_matches() -> None:
    @fx.kernel
    def k(x, out):
        g = fx.gpu.thread_id.x
        v = x[g]
        out[0, g] = fx.gpu.ballot(v > 0)
        out[1, g] = fx.u32(fx.gpu.all_(v > -9)) + 2 * fx.u32(fx.gpu.any_(v > 7)) + 4 * fx.u32(fx.gpu.all_(v > 0))
        out[2, g] = fx.gpu.match_any(fx.i32(v))
        out[3, g] = fx.gpu.match_all(fx.f64(v)) + fx.gpu.match_all(3)
        fx.gpu.syncwarp()
        if g % 3 == 0:
            m = fx.gpu.activemask()
            out[4, g] = m
            out[5, g] = fx.gpu.ballot(v > 0, m)
            out[6, g] = fx.gpu.match_any(fx.u32(g % 2), m)

    x = small(48)
    g = np.arange(48)
    member = [(g // 32 == w) for w in range(2)]

    def mask(hold: np.ndarray, w: int) -> int:
        return sum(1 << int(i) % 32 for i in g[hold & member[w]])

    want = np.zeros((7, 48), "u4")
    for i in g:
        w = i // 32
        mine = x[member[w]]
        want[0, i] = mask(x > 0, w)
        want[1, i] = 1 + 2 * (mine > 7).any() + 4 * (mine > 0).all()
        want[2, i] = mask(x == x[i], w)
        want[3, i] = mask(g >= 0, w) + (mask(g >= 0, w) if len(set(mine)) == 1 else 0)
        if i % 3 == 0:
            want[4, i] = mask(g % 3 == 0, w)
            want[5, i] = mask((g % 3 == 0) & (x > 0), w)
            want[6, i] = mask((g % 3 == 0) & (g % 2 == i % 2), w)
    agree(k, 1, 48, x, np.zeros((7, 48), "u4"), want=[want])


INTEGERS, FLOATS = ("i4", "u4", "i8", "u8", "i2", "u1"), ("f4", "f8", "f2", ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_atomics(dtype: object) -> None:
    words = ["add", "sub", "min", "max"]
    if dtype not in ("u1",):
        words.append("mul")
    if dtype in INTEGERS:
        words += ["and", "or", "xor"]
    if str(dtype)[0] == "u":
        words += ["inc", "dec"]
    ops = tuple(getattr(fx.gpu, f"atomic_{w}") for w in words)

    @fx.kernel
    def k(x, a, olds):
        i = fx.gpu.global_id.x
        for j, op in enumerate(ops):
            op(a, j, x[i])
        old = fx.gpu.atomic_exch(olds, i, x[i])
        fx.gpu.atomic_add(a, len(ops), old)

    x = RNG.integers(1, 3, 24).astype(dtype)
    a = np.full(len(words) + 1, 3, dtype)
    want = a.copy()
    meaning = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "mul": np.multiply}
    meaning |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    with np.errstate(all="ignore"):
        for v in x:
            for j, w in enumerate(words):
                if w in meaning:
                    want[j] = meaning[w](want[j], v)
    want[len(words)] = want[len(words)] + np.asarray(24, dtype)
    free = [j for j, w in enumerate(words) if w in ("inc", "dec")]  # their result depends on the order of the threads

    devices = ("cpu",) if dtype == "u1" else ("cpu", "vgpu:sm_80", "vgpu:sm_90")
    results = [agree(k, 3, 8, x, a, np.ones(24, dtype), devices=(d,), interpret=False) for d in devices]
    results.append(agree(k, 3, 8, x, a, np.ones(24, dtype), devices=()))
    if dtype == "u1":
        with pytest.raises(fx.FluxError, match=r"FX0502.*no atomics of 8 bits"):
            k.on("vgpu").code("ptx", x, a, x)
    for _, found, olds in results:
        keep = [j for j in range(len(a)) if j not in free]
        np.testing.assert_array_equal(found[keep].astype("f8"), want[keep].astype("f8"))
        np.testing.assert_array_equal(olds, x)
        assert all(found[j] <= 3 for j in free)


def test_a_lock_by_compare_and_swap_and_counters_that_wrap() -> None:
    @fx.kernel
    def k(lock, count, turns, out):
        i = fx.gpu.global_id.x
        mine = False
        while not mine:
            if fx.gpu.atomic_cas(lock, 0, 0, 1) == 0:
                fx.gpu.fence()
                count[0] = fx.gpu.atomic_add(count, 1, 0) + 1
                fx.gpu.atomic_add(count, 1, 1)
                fx.gpu.fence()
                fx.gpu.atomic_exch(lock, 0, 0)
                mine = True
        fx.gpu.atomic_inc(turns, 0, 4)
        fx.gpu.atomic_dec(turns, 1, 4)
        out[i] = 1

    found = []
    for device in ("cpu", "vgpu:sm_80"):
        args = [np.zeros(1, "i4"), np.zeros(2, "i4"), np.zeros(2, "u4"), np.zeros(12, "i4")]
        with fx_sanitizer(off=device != "cpu"):  # memory behind a lock looks like a race
            k.on(device)[3, 4](*args)
        found.append(args)
    for args in found:
        assert args[0][0] == 0 and list(args[1]) == [12, 12] and list(args[2]) == [12 % 5, 3] and args[3].all()


def fx_sanitizer(off: bool) -> object:
    from fluxir import config

    return config.override(sanitizer=not off)


def test_asynchronous_copies() -> None:
    @fx.kernel
    def k(x, out):
        stage = fx.gpu.shared((2, 32), fx.f32)
        t = fx.gpu.thread_id.x
        n = len(x) // 32
        fx.gpu.async_copy(stage, (0, t * 4), x, t * 4, 4)
        fx.gpu.async_commit()
        acc = 0.0
        for i in range(n):
            if i + 1 < n:
                fx.gpu.async_copy(stage, ((i + 1) % 2, t * 4), x, (i + 1) * 32 + t * 4, 4)
                fx.gpu.async_commit()
                fx.gpu.async_wait(1)
            else:
                fx.gpu.async_wait()
            fx.gpu.barrier()
            for j in range(4):
                acc += stage[i % 2, t + 8 * j]
            fx.gpu.barrier()
        out[t] = acc

    x = small(160)
    agree(k, 1, 8, x, np.zeros(8, "f4"), want=[x.reshape(-1, 8).sum(0)])


@pytest.mark.parametrize(
    ("dtype", "tol"), [("f2", 1e-5), (ml_dtypes.bfloat16, 1e-5), ("f4", 5e-3)], ids=["f16", "bf16", "tf32"]
)
def test_tensor_cores(dtype: object, tol: float) -> None:
    depth = 8 if dtype == "f4" else 16

    @fx.kernel
    def matmul(a, b, out):
        row, col = fx.gpu.block_id.y * 16, fx.gpu.block_id.x * 8
        acc = fx.gpu.mma_load_c(out, row, col)
        for k in range(0, a.shape[1], depth):
            acc = fx.gpu.mma(fx.gpu.mma_load_a(a, row, k), fx.gpu.mma_load_b(b, k, col), acc)
        fx.gpu.mma_store(out, row, col, acc)

    a, b = RNG.standard_normal((16, 48)).astype(dtype), RNG.standard_normal((48, 16)).astype(dtype)
    want = a.astype("f4") @ b.astype("f4") + 1
    agree(matmul, (2, 1), 32, a, b, np.ones((16, 16), "f4"), want=[want], tol=tol)


def test_the_blocks_of_a_grid_meet() -> None:
    @fx.kernel
    def k(x, part, out):
        b, t = fx.gpu.block_id.x, fx.gpu.thread_id.x
        for turn in range(2):
            part[b * 4 + t] = x[b * 4 + t] + fx.f32(turn)
            fx.gpu.grid_sync()
            s = 0.0
            for i in range(len(part)):
                s += part[i]
            fx.gpu.grid_sync()
            out[turn, b * 4 + t] = s

    x = small(12)
    want = np.stack([np.full(12, x.sum()), np.full(12, x.sum() + 12)])
    agree(k, 3, 4, x, np.zeros(12, "f4"), np.zeros((2, 12), "f4"), want=[want], devices=("vgpu:sm_80",))
    with pytest.raises(fx.FluxError, match="FX0334"):
        k.on("cpu")[3, 4](x, np.zeros(12, "f4"), np.zeros((2, 12), "f4"))


def test_threads_that_go_different_ways_meet_in_loops_and_branches() -> None:
    """On the CPU these are masked loops over the threads; slots keep what lives across the meetings."""

    @fx.kernel
    def k(x, out, n):
        s = fx.gpu.shared((32,), fx.f32)
        t = fx.gpu.thread_id.x
        mine = fx.gpu.local((2,), fx.f32)
        mine[0] = x[t]
        mine[1] = 1.0
        acc = 0.0
        rounds = 0
        while fx.gpu.any_(rounds < t // 8):
            rounds += 1
            if t >= 16:
                m = fx.gpu.activemask()
                acc += fx.gpu.shuffle_xor(mine[0] + fx.f32(rounds), 1, m)
            mine[1] = acc + fx.gpu.shuffle_down(mine[1], 1)
            if rounds > 2:
                break
        for i in range(n):
            s[t] = mine[1] + fx.f32(i)
            fx.gpu.barrier()
            acc += s[31 - t] * mine[0]
            fx.gpu.barrier()
        if n > 2:
            s[t] = acc
            fx.gpu.barrier()
            acc = s[(t + 1) % 32]
        out[t] = acc

    for n in (2, 3):
        agree(k, 1, 32, small(32), np.zeros(32, "f4"), n)


def test_what_kernels_print_comes_in_order_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    @fx.kernel
    def k(x):
        i = fx.gpu.global_id.x
        fx.gpu.printf("%d: %.2f\n", i, x[i])
        if i == 3:
            print("last", i, f"{x[i]:.1f} {x[i] > 2} 100%", sep="|")

    want = "0: 0.00\n1: 1.50\n2: 3.00\n3: 4.50\nlast|3|4.5 True 100%\n"
    for device in ("cpu", "vgpu"):
        k.on(device)[2, 2](np.arange(4, dtype="f4") * 1.5)
        assert capsys.readouterr().out == want


def test_a_failed_assertion_names_line_block_and_thread() -> None:
    @fx.kernel
    def k(x, out):
        i = fx.gpu.global_id.x
        assert x[i] < 5, "x is too large"
        out[i] = x[i]

    for device in ("cpu", "vgpu"):
        with pytest.raises(fx.FluxError) as e:
            k.on(device)[2, 4](np.arange(8, dtype="f4"), np.zeros(8, "f4"))
        assert e.value.code == "FX0608" and e.value.message == "assertion failed: x is too large"
        assert e.value.loc is not None and e.value.loc.file == __file__
        assert e.value.notes == ["in block (1, 0, 0), thread (1, 0, 0)"]


def test_the_sanitizer_names_the_line_of_the_kernel() -> None:
    @fx.kernel
    def k(x, out):
        i = fx.gpu.global_id.x
        y = x[i]
        out[i + 1] = y

    with pytest.raises(fx.FluxError) as e:
        k.on("vgpu")[1, 8](np.ones(8, "f4"), np.zeros(8, "f4"))
    assert e.value.code == "FX0708" and e.value.loc is not None
    line = k.fn.__code__.co_firstlineno + 4
    assert (e.value.loc.file, e.value.loc.line) == (__file__, line)


def test_ptxas_takes_the_ptx_of_every_feature() -> None:
    @fx.kernel(block=64)
    def everything(a, n: fx.i32, count, h, b, d, u, m):
        g, lane = fx.gpu.global_id.x, fx.gpu.lane_id()
        v = a[g] + fx.gpu.shuffle_xor(a[g], 16) + fx.gpu.shuffle_up(a[g], 1) + fx.gpu.shuffle_down(a[g], 2)
        bits = fx.gpu.ballot(v > 0)
        if fx.gpu.all_(v > 1) or fx.gpu.any_(v < 0, bits):
            count[0] = fx.gpu.match_any(fx.i32(lane)) + fx.gpu.match_all(fx.u32(3)) + fx.gpu.activemask()
        fx.gpu.syncwarp()
        for op in (fx.gpu.atomic_add, fx.gpu.atomic_sub, fx.gpu.atomic_min, fx.gpu.atomic_max, fx.gpu.atomic_mul):
            op(a, 1, v)
            op(h, 1, fx.f16(v))
            op(b, 1, fx.bf16(v))
            op(d, 1, fx.f64(v))
            op(u, 1, fx.u64(v))
        fx.gpu.atomic_inc(count, 1, 5)
        fx.gpu.atomic_cas(u, 0, 1, 2)
        s = fx.gpu.shared((n, 4), fx.f32)
        fx.gpu.async_copy(s, (lane, 0), a, lane * 4, 4)
        fx.gpu.async_commit()
        fx.gpu.async_wait(1)
        fx.gpu.async_wait()
        fx.gpu.barrier()
        fx.gpu.fence("block")
        fx.gpu.grid_sync()
        assert s[lane, 2] > 0, "positive"
        fx.gpu.printf("%d %f\n", lane, s[lane, 2])
        c = fx.gpu.mma(fx.gpu.mma_load_a(m, 0, 0), fx.gpu.mma_load_b(m, 0, 0), fx.gpu.mma_zero())
        a.store(g * 4, a.load(g * 4, lanes=4) * 2.0 + c)

    one = {k: np.ones(8, t) for k, t in (("a", "f4"), ("count", "u4"), ("h", "f2"), ("d", "f8"), ("u", "u8"))}
    args = (
        one["a"],
        8,
        one["count"],
        one["h"],
        np.ones(8, ml_dtypes.bfloat16),
        one["d"],
        one["u"],
        np.ones((16, 16), "f2"),
    )
    for target in ("sm_80", "sm_90"):
        ptx = everything.on(f"vgpu:{target}").code("ptx", *args)
        (info,) = assemble(ptx, target)
        assert info.registers > 16 and not info.spill_stores
        assert ".maxntid 64" in ptx and "\t.loc\t1 " in ptx and f'"{__file__}"' in ptx


def test_lanes_that_go_back_to_a_loop_by_different_ways_vote_together() -> None:
    """LLVM closes this loop in two places; the lanes of one round meet before they vote on the next."""

    @fx.kernel
    def k(x, out):
        t = fx.gpu.thread_id.x
        a, q = x[t], 0
        while fx.gpu.any_(q < (a & 3)):
            q += 1
            if a % 2 == 0:
                a = a * 3 // (q + 1)
            else:
                a = a - q
        out[t] = a + 100 * q

    agree(k, 1, 32, np.arange(32, dtype="i4") * 7, np.zeros(32, "i4"))
