"""Proofs of `a <= b` between sizes, one step stronger than interval arithmetic: `T//2 <= T`, `min(B,2) <= B`.

A type rule that reads part of an axis must know that the part lies inside it, for every size the facts allow.
"""

from __future__ import annotations

from fluxir.ir.dims import Dim, Opaque, Poly, facts, mul, prove_le


def at_most(a: Dim, b: Dim) -> bool:
    """Whether `a <= b` for all sizes the facts allow; False where that is not proven."""
    return _nonnegative(facts().canonical(b - a), 8)


def _nonnegative(d: Dim, depth: int) -> bool:
    """Replaces an opaque term by a bound on it, the side that makes `d` smaller, until intervals decide."""
    if prove_le(0, d):
        return True
    if isinstance(d, int) or depth == 0:
        return False
    for mono, c in d.terms:
        if len(mono) != 1 or mono[0][1] != 1 or not isinstance(mono[0][0], Opaque):
            continue
        atom = mono[0][0]
        a, b = atom.a, atom.b
        rest = d - mul(c, _value(atom))
        if atom.kind == "floordiv":
            if not isinstance(b, int) or b < 1:
                continue
            # a - b + 1 <= b * floordiv(a, b) <= a
            bound = mul(c, a) if c < 0 else mul(c, a - (b - 1))
            if _nonnegative(mul(rest, b) + bound, depth - 1):
                return True
        elif (atom.kind == "min") == (c < 0):  # min is at most each of its terms, max at least
            if any(_nonnegative(rest + mul(c, x), depth - 1) for x in (a, b)):
                return True
        elif all(_nonnegative(rest + mul(c, x), depth - 1) for x in (a, b)):
            return True
    return False


def _value(atom: Opaque) -> Dim:
    return Poly(((((atom, 1),), 1),))


__all__ = ["at_most"]
