"""Tensor maps of the virtual GPU: boxes of tensors in and out of shared memory, against numpy by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from tests.vgpu_ptx import BARRIER, Array, kernel, kinds, run, wait


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
