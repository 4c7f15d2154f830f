"""What the functions of `fx.linalg` take: float matrices with batch axes in front, checked and named in errors."""

from __future__ import annotations

from typing import Any

from fluxir.errors import error
from fluxir.frontend.api_creation import iota
from fluxir.frontend.api_elementwise import float_operand
from fluxir.frontend.api_manipulation import broadcast_to
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.tensor import Tensor, constant, emit, promote_operands
from fluxir.frontend.trace import assume, here
from fluxir.ir.dims import Dim, prove_le, require_equal


def matrix(name: str, x: Any) -> Tensor:
    """A float matrix, or a batch of them. FX0220 for fewer than two axes, FX0209 for other types.

    A size that is a symbol is taken to be at least 1: the compiled program checks it at its entry.

    f16 and bf16 are refused, as NumPy refuses f16: a factorisation in so few digits is seldom what is meant.
    """
    t = float_operand(f"linalg.{name}", x)
    if t.ndim < 2:
        raise error("FX0220", f"{name}: a matrix has 2 axes, {t.type} has {t.ndim}", loc=here())
    for d in (t.shape[-1], t.shape[-2]):
        if not isinstance(d, int) and str(d).isidentifier() and not prove_le(1, d):
            assume(f"{d} >= 1")
    return _wide(name, t)


def _wide(name: str, t: Tensor) -> Tensor:
    if t.dtype.bits < 32:
        raise error("FX0209", f"{name} takes f32 and f64, not {t.type}",
                    help="cast it first, and the result back: x.astype('f32')", loc=here())  # fmt: skip
    return t


def square(name: str, x: Any) -> Tensor:
    """A square matrix, or a batch of them. FX0220."""
    t = matrix(name, x)
    if not require_equal(t.shape[-1], t.shape[-2]):
        raise error("FX0220", f"{name} takes square matrices, not {t.type}", loc=here())
    return t


def right_side(name: str, a: Tensor, b: Any) -> tuple[Tensor, Tensor, bool]:
    """`a` and the right side of `a x = b` in one type, the latter as matrices; and whether it was a vector (one axis, as in
    NumPy 2). FX0203."""
    a, t = promote_operands(a, _wide(name, float_operand(f"linalg.{name}", b)))
    if not t.ndim:
        raise error("FX0220", f"{name}: the right side {t.type} has no axis", loc=here())
    vector = t.ndim == 1
    t = t[:, None] if vector else t
    if not require_equal(t.shape[-2], a.shape[-2]):
        raise error("FX0203", f"{name}: {a.type} and a right side of {t.shape[-2]} rows ({t.type})", loc=here())
    return a, t, vector


def is_tall(name: str, t: Tensor) -> bool:
    """Whether there are at least as many rows as columns; FX0220 where sizes leave it open."""
    m, n = t.shape[-2:]
    if prove_le(n, m):
        return True
    if prove_le(m, n):
        return False
    raise error("FX0220", f"{name}: whether {t.type} has more rows or more columns depends on sizes", loc=here(),
                help=f"give {n} a number and bound {m} from below with a fact, or write {m} as a sum such as {n}+K")  # fmt: skip


def with_batch(t: Tensor, batch: tuple[Dim, ...]) -> Tensor:
    """`t` with these axes in front of its matrix axes."""
    return t if t.shape[:-2] == batch else broadcast_to(t, (*batch, *t.shape[-2:]))


def on_diagonal(n: Dim) -> Tensor:
    """bool[n, n]: the diagonal."""
    return emit("eq", iota((n, 1)), iota((n,)))


def diagonal_of(t: Tensor) -> Tensor:
    """The diagonal of the last two axes of square matrices, as the last axis.

    A masked sum, not a gather: its transpose is a mask too, which runs inside the kernels around it.
    """
    return sum_(emit("select", on_diagonal(t.shape[-1]), t, constant(0, t.dtype)), axis=-1)


__all__ = ["diagonal_of", "is_tall", "matrix", "on_diagonal", "right_side", "square", "with_batch"]
