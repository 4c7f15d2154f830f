"""Random bits: the counter-based generator Philox 4x32-10, the same bits on every target.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Element e of the
result (row-major) is word e % 4 of the block with counter (e // 4) as a 64-bit number in words 0 and 1, key as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops.rules import tensor_operands
from fluxir.ops.shape import require_sizes

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
U32, U64 = DTYPES["u32"], DTYPES["u64"]
KEY = TensorType(U32, (2,))


def philox(counter: Any, key: Any) -> Any:
    """The four words of each block: `counter` u32[..., 4], `key` u32[2] -> u32[..., 4]."""
    c = [np.asarray(counter)[..., i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(ROUNDS):
        p0, p1 = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        half = np.uint64(32)
        c = [(p1 >> half) ^ c[1] ^ k[0], p1 & low, (p0 >> half) ^ c[3] ^ k[1], p0 & low]
        k = [(x + np.uint64(s)) & low for x, s in zip(k, KEY_STEPS, strict=True)]
    return np.stack(c, axis=-1).astype(np.uint32)


def _random_bits(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (key,) = tensor_operands("random_bits", t, 1)
    if key != KEY:
        raise error(
            "FX0227", f"random_bits: the key must be {KEY}, not {key}", help="make one with fx.random.key(seed)"
        )
    return [TensorType(U32, require_sizes("random_bits", a.shape))]


def _random_bits_ref(a: Attrs, key: Any) -> Any:
    count = int(np.prod(a.shape, dtype=np.int64))
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(block)
    counter = np.stack([block & np.uint64(0xFFFFFFFF), block >> np.uint64(32), zero, zero], axis=-1)
    return philox(counter.astype(np.uint32), key).reshape(-1)[:count].reshape(a.shape)


def philox_words(b: Any, block: Value, key: Sequence[Value]) -> list[Value]:
    """The four u32 words of the block with the i64 number `block`; scalars or vectors. For templates too."""
    number = b.bitcast(block, dtype=U64)
    zero = b.const(0, like=key[0])
    c = [b.cast(number, dtype=U32), b.cast(b.shift_right(number, 32), dtype=U32), zero, zero]
    k = list(key)
    for r in range(ROUNDS):
        if r:
            k = [b.add(x, step) for x, step in zip(k, KEY_STEPS, strict=True)]
        p = [b.mul(b.cast(x, dtype=U64), m) for x, m in zip((c[0], c[2]), MULTIPLIERS, strict=True)]
        high = [b.cast(b.shift_right(x, 32), dtype=U32) for x in p]
        low = [b.cast(x, dtype=U32) for x in p]
        c = [b.bit_xor(b.bit_xor(high[1], c[1]), k[0]), low[1], b.bit_xor(b.bit_xor(high[0], c[3]), k[1]), low[0]]
    return c


def _random_bits_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    b = cx.b
    linear = b.index(0)
    for i, d in zip(index, o.attrs.shape, strict=True):
        linear = b.add(b.mul(linear, cx.dim(d)), i)
    key = [cx.at(o.operands[0], [b.index(i)]) for i in range(2)]
    words = philox_words(b, b.div(linear, b.index(4)), key)
    lane = b.fmod(linear, b.index(4))
    low = b.select(b.eq(lane, b.index(0)), words[0], words[1])
    high = b.select(b.eq(lane, b.index(2)), words[2], words[3])
    return b.select(b.lt(lane, b.index(2)), low, high)


op(
    "random_bits",
    _random_bits,
    attrs={"shape": "dims"},
    category="random",
    ref=_random_bits_ref,
    element=_random_bits_element,
    samples=(
        sample("u32[2]", shape=(7,), low=0, high=1000),
        sample("u32[2]", shape=(2, 3)),
        sample("u32[2]", shape=()),
        sample("u32[2]", shape=(0, 2)),
    ),
    doc="random_bits(key u32[2]): u32 of `shape`, Philox 4x32-10 by element number. The same key gives the same bits.",
    constant="takes integers",
)

__all__ = ["philox", "philox_words"]
