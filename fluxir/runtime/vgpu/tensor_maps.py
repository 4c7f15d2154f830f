"""Tensor maps: how the tensor copies of sm_90 find a box of a tensor in global memory.

`tensor_map` takes what `cuTensorMapEncodeTiled` takes and `tensor_map_im2col` what `cuTensorMapEncodeIm2col` takes; both give 128
bytes. NVIDIA does not say what is in them, so the encoding is our own. Sizes and strides go from the innermost dimension
outward; sizes are elements, strides bytes.

Source: CUDA Driver API, "Tensor Map Object Management"; PTX ISA 9.0, section 5.5 (tensors).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluxir.errors import error

from .values import Array

__all__ = ["SWIZZLES", "TensorMap", "swizzled", "tensor_map", "tensor_map_im2col"]

NBYTES = 128
_MAGIC = b"FXTM"
_LAYOUT = struct.Struct("<4s8BQ5I5Q5H5B3b3bHI")

TYPES = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32", "tf32", "tf32")
"""PTX types by the numbers of CUtensorMapDataType; the second f32 and tf32 flush subnormals to zero."""
_BYTES = {"u8": 1, "u16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8, "f16": 2, "f32": 4, "f64": 8, "bf16": 2, "tf32": 4}
_NAN = {
    "f16": 0x7FF7,
    "bf16": 0x7FF7,
    "f32": 0x7FF77FF7,
    "tf32": 0x7FF77FF7,
    "f64": 0x7FF77FF77FF77FF7,
}  # see `fma.oob`
SWIZZLES = (0, 32, 64, 128)
"""Bytes over which 16-byte chunks are exchanged, by the numbers of CUtensorMapSwizzle."""


@dataclass(frozen=True)
class TensorMap:
    """`type`: a number of CUtensorMapDataType. `strides[i]`: bytes between neighbours in dimension i, the element's size for
    i = 0. `box`, `steps`: how many elements a copy spans in each dimension, and every how manieth it takes. For im2col maps
    `lower` and `upper` are the corners of the box of pixels, `channels` and `pixels` what a copy takes."""

    type: int
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int = 0
    fill: int = 0
    im2col: bool = False
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    channels: int = 0
    pixels: int = 0

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def element(self) -> str:
        """The PTX type of an element."""
        return TYPES[self.type]

    @property
    def itemsize(self) -> int:
        return _BYTES[self.element]

    @property
    def flushes(self) -> bool:
        """Whether subnormal numbers are read as zero."""
        return self.type in (10, 12)

    @property
    def outside(self) -> int:
        """The bits of an element that lies outside of the tensor."""
        return _NAN.get(self.element, 0) if self.fill else 0

    @property
    def box_elements(self) -> int:
        """How many elements a copy moves."""
        if self.im2col:
            return self.channels * self.pixels
        count = 1
        for n, step in zip(self.box, self.steps):
            count *= -(-n // step)
        return count

    def encode(self) -> bytes:
        """The 128 bytes."""

        def five(values: Sequence[int]) -> list[int]:
            return [*values, *[0] * (5 - len(values))]

        def three(values: Sequence[int]) -> list[int]:
            return [*values, *[0] * (3 - len(values))]

        head = (self.rank, self.type, self.swizzle, self.fill, int(self.im2col), 0, 0, 0)
        raw = _LAYOUT.pack(
            _MAGIC, *head, self.address, *five([n - 1 for n in self.sizes]), *five(self.strides), *five(self.box),
            *five(self.steps), *three(self.lower), *three(self.upper), self.channels, self.pixels,
        )  # fmt: skip
        return raw.ljust(NBYTES, b"\0")

    # ---- boxes
    def tile(self, at: Sequence[int]) -> tuple[Array, Array]:
        """(byte addresses less `address`, which lie inside) of the elements of the box at the coordinates, innermost first in
        memory order."""
        offset = np.zeros((1,), np.int64)
        inside = np.ones((1,), bool)
        for start, n, step, size, stride in zip(at, self.box, self.steps, self.sizes, self.strides):
            where = start + np.arange(0, n, step)
            offset = (where * stride)[:, None] + offset[None, :]
            inside = ((where >= 0) & (where < size))[:, None] & inside[None, :]
            offset, inside = offset.reshape(-1), inside.reshape(-1)
        return offset, inside

    def columns(self, at: Sequence[int], offsets: Sequence[int]) -> tuple[Array, Array]:
        """The same in im2col mode: from the pixel `at` (channel, spatial coordinates, image) on `pixels` pixels of the bounding
        box in order, each moved by `offsets`, and `channels` channels of each."""
        spatial = self.rank - 2
        first = [self.lower[i] for i in range(spatial)]
        last = [self.sizes[1 + i] - 1 + self.upper[i] for i in range(spatial)]
        position = list(at[1:])
        found = []
        for _ in range(self.pixels):
            found.append(tuple(position))
            for i in range(spatial):  # the next pixel of the bounding box
                position[i] += self.steps[1 + i]
                if position[i] <= last[i]:
                    break
                position[i] = first[i]
            else:
                position[spatial] += 1
        pixel = np.array(found, np.int64)
        pixel[:, :spatial] += np.asarray(offsets, np.int64)
        limits = np.array(self.sizes[1:], np.int64)
        there = np.asarray(((pixel >= 0) & (pixel < limits)).all(axis=1))
        channel = at[0] + np.arange(self.channels)
        within = (channel >= 0) & (channel < self.sizes[0])
        base = pixel @ np.array(self.strides[1:], np.int64)
        offset = base[:, None] + channel * self.strides[0]
        return offset.reshape(-1), (there[:, None] & within).reshape(-1)


@functools.lru_cache(maxsize=256)
def decode(raw: bytes) -> TensorMap | None:
    """The map in 128 bytes; None where there is none."""
    if raw[:4] != _MAGIC:
        return None
    fields = _LAYOUT.unpack(raw[: _LAYOUT.size])
    rank, kind, swizzle, fill, im2col = fields[1:6]
    address = fields[9]
    sizes, strides, box, steps = (fields[10 + 5 * i : 10 + 5 * i + rank] for i in range(4))
    spatial = max(0, rank - 2)
    lower, upper = fields[30 : 30 + spatial], fields[33 : 33 + spatial]
    return TensorMap(
        kind, address, tuple(n + 1 for n in sizes), tuple(strides), tuple(box), tuple(steps), swizzle, fill, bool(im2col),
        tuple(lower) if im2col else (), tuple(upper) if im2col else (), fields[36], fields[37],
    )  # fmt: skip


def swizzled(offset: Array, span: int) -> Array:
    """Where the 16-byte chunks at offsets in shared memory are kept: the chunk's number within `span` bytes is xor-ed with the
    number of the 128-byte line it is in."""
    mask = (span // 16 - 1) if span else 0
    moved: Array = offset ^ ((offset >> 7 & mask) << 4)
    return moved


# ---- making them


def _refuse(why: str) -> None:
    raise error("FX0711", f"tensor map: {why}", help="the arguments are those of cuTensorMapEncodeTiled")


def _check(
    data_type: int, rank: int, address: int, sizes: Sequence[int], strides: Sequence[int], steps: Sequence[int],
    interleave: int, swizzle: int, inner_bytes: int,
) -> None:  # fmt: skip
    for wrong, why in (
        (not 0 <= data_type < len(TYPES), f"there is no data type {data_type}"),
        (not 1 <= rank <= 5, f"1 to 5 dimensions, not {rank}"),
        (interleave != 0, "interleaved layouts are not taken"),
        (not 0 <= swizzle < len(SWIZZLES), f"there is no swizzle mode {swizzle}"),
        (address % 16 != 0, f"the address {address:#x} is not a multiple of 16"),
        (len(sizes) != rank or len(strides) != rank - 1 or len(steps) != rank, f"sizes for {rank} dimensions are expected"),
        (any(not 1 <= n <= 1 << 32 for n in sizes), f"sizes of 1 to 2**32, not {tuple(sizes)}"),
        (any(s % 16 or not 0 <= s < 1 << 40 for s in strides), f"strides that are multiples of 16, not {tuple(strides)}"),
        (any(not 1 <= s <= 8 for s in steps), f"element strides of 1 to 8, not {tuple(steps)}"),
        (inner_bytes % 16 != 0, f"a row of the box has {inner_bytes} bytes, which is no multiple of 16"),
        (swizzle and inner_bytes > SWIZZLES[swizzle % 4], f"a row of {inner_bytes} bytes is more than the swizzle spans"),
    ):  # fmt: skip
        if wrong:
            _refuse(why)


def tensor_map(
    data_type: int, rank: int, address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int],
    element_strides: Sequence[int] | None = None, interleave: int = 0, swizzle: int = 0, l2_promotion: int = 0, fill: int = 0,
) -> bytes:  # fmt: skip
    """The 128 bytes of a tensor map for tiles. Arguments as those of `cuTensorMapEncodeTiled`, enumerations as their numbers:
    `sizes` and `box` in elements, innermost first; `strides` in bytes for all dimensions but the first. FX0711 for what the
    driver refuses, and for interleaved layouts."""
    steps = tuple(element_strides or (1,) * rank)
    if len(box) != rank or any(not 1 <= n <= 256 for n in box):
        _refuse(f"a box of {rank} sizes of 1 to 256, not {tuple(box)}")
    size = _BYTES[TYPES[data_type]] if 0 <= data_type < len(TYPES) else 1
    _check(data_type, rank, address, sizes, strides, steps, interleave, swizzle, -(-box[0] // max(1, steps[0])) * size)
    return TensorMap(
        data_type, address, tuple(sizes), (size, *strides), tuple(box), steps, swizzle, fill,
    ).encode()  # fmt: skip


def tensor_map_im2col(
    data_type: int, rank: int, address: int, sizes: Sequence[int], strides: Sequence[int], lower: Sequence[int],
    upper: Sequence[int], channels: int, pixels: int, element_strides: Sequence[int] | None = None, interleave: int = 0,
    swizzle: int = 0, l2_promotion: int = 0, fill: int = 0,
) -> bytes:  # fmt: skip
    """The 128 bytes of a tensor map for im2col copies; arguments as those of `cuTensorMapEncodeIm2col`."""
    steps = tuple(element_strides or (1,) * rank)
    if not 3 <= rank <= 5 or len(lower) != rank - 2 or len(upper) != rank - 2:
        _refuse(f"im2col takes 3 to 5 dimensions and corners of all but two of them, not {rank}")
    if not 1 <= channels <= 256 or not 1 <= pixels <= 1024:
        _refuse(f"1 to 256 channels and 1 to 1024 pixels, not {channels} and {pixels}")
    size = _BYTES[TYPES[data_type]] if 0 <= data_type < len(TYPES) else 1
    _check(data_type, rank, address, sizes, strides, steps, interleave, swizzle, channels * size)
    return TensorMap(
        data_type, address, tuple(sizes), (size, *strides), (1,) * rank, steps, swizzle, fill, True, tuple(lower), tuple(upper),
        channels, pixels,
    ).encode()  # fmt: skip
