"""`fx.einsum`: Einstein summation over `dot`, operands contracted pairwise, the cheapest pair first.

Owns reading of the equation (letters, ellipsis, implicit result; FX0215) and the order. A letter repeated within one
operand takes its diagonal; a letter of one operand only that is not in the result is summed at once.
"""

from __future__ import annotations

import string
from typing import Any

from fluxir.errors import error
from fluxir.frontend.api_creation import iota
from fluxir.frontend.tensor import Tensor, as_tensor, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, Poly, require_equal

Term = tuple[str, Tensor]  # one letter per axis


@public
def einsum(equation: Any, /, *operands: Any) -> Tensor:
    """The sum of products that `equation` says: one letter per axis, operands separated by commas, `->` and the result.

    `...` stands for the remaining axes, which broadcast. Without `->` the result has the letters that occur once, in
    alphabetical order, after the axes of `...`. numpy's list form `einsum(x, [0, 1], y, [1, 2], [0, 2])` works too.
    Raises FX0215 for a wrong equation, FX0203 where a letter has two sizes.
    """
    if not isinstance(equation, str):
        equation, operands = _from_lists(equation, operands)
    tensors = [as_tensor(t) for t in operands]
    inputs, output = parse(equation, [t.ndim for t in tensors])
    if len(tensors) > 1:
        tensors = promote_operands(*tensors)
    sizes: dict[str, Dim] = {}
    where: dict[str, str] = {}
    for k, (letters, t) in enumerate(zip(inputs, tensors, strict=True)):
        for axis, (c, d) in enumerate(zip(letters, t.shape, strict=True)):
            if c not in sizes or c in _DOTS and sizes[c] == 1:
                sizes[c], where[c] = d, f"operand {k}, axis {axis}"
            elif not (d == 1 and c in _DOTS) and not require_equal(sizes[c], d):
                raise error(
                    "FX0203",
                    f"einsum {equation!r}: the letter {c!r} is {sizes[c]} ({where[c]}) and {d} (operand {k}, axis {axis})",
                    labels=[(f"operand {i}", str(x.type)) for i, x in enumerate(tensors)],
                    loc=here(),
                )
    terms = [_simplified(letters, t, sizes) for letters, t in zip(inputs, tensors, strict=True)]
    while len(terms) > 1:
        i, j = _cheapest(terms, output, sizes)
        b, a = terms.pop(j), terms.pop(i)
        rest = set(output).union(*[letters for letters, _ in terms])
        terms.append(_contract(a, b, rest))
    letters, t = _sum_out(terms[0], set(output))
    perm = tuple(letters.index(c) for c in output)
    return t if perm == tuple(range(len(perm))) else emit("transpose", t, perm=perm)


_DOTS = "".join(chr(0x2460 + i) for i in range(20))  # private letters for the axes of `...`


def parse(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result, `...` written out; FX0215 for a wrong equation."""

    def wrong(why: str) -> Exception:
        return error("FX0215", f"einsum {equation!r}: {why}", help="for example 'ij,jk->ik'", loc=here())

    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    if "->" in right:
        raise wrong("'->' occurs twice")
    inputs = left.split(",")
    if len(inputs) != len(ranks):
        raise wrong(f"it names {len(inputs)} operands, {len(ranks)} are given")
    extra = 0
    expanded = []
    for k, (letters, rank) in enumerate(zip(inputs, ranks, strict=True)):
        plain = letters.replace("...", "", 1)
        if not all(c in string.ascii_letters for c in plain):
            raise wrong(f"{letters!r} has something other than letters and one '...'")
        if "..." in letters:
            n = rank - len(plain)
            if n < 0:
                raise wrong(f"operand {k} has {rank} axes, {letters!r} names {len(plain)}")
            extra = max(extra, n)
            letters = letters.replace("...", "<" + str(n) + ">")
        elif len(letters) != rank:
            raise wrong(f"operand {k} has {rank} axes, {letters!r} names {len(letters)}")
        expanded.append(letters)

    def dots(n: int) -> str:
        return _DOTS[extra - n : extra]

    out = []
    for letters in expanded:
        if "<" in letters:
            head, _, tail = letters.partition("<")
            count, _, tail = tail.partition(">")
            letters = head + dots(int(count)) + tail
        out.append(letters)
    if not arrow:
        joined = "".join(out)
        result = dots(extra) + "".join(
            sorted(c for c in set(joined) if c in string.ascii_letters and joined.count(c) == 1)
        )
        return out, result
    plain = right.replace("...", "", 1)
    if not all(c in string.ascii_letters for c in plain):
        raise wrong(f"the result {right!r} has something other than letters and one '...'")
    result = right.replace("...", dots(extra))
    if extra and "..." not in right:
        raise wrong("the result lacks '...'")
    if len(set(result)) != len(result):
        raise wrong(f"a letter occurs twice in the result {right!r}")
    for c in plain:
        if not any(c in letters for letters in out):
            raise wrong(f"the letter {c!r} of the result is in no operand")
    return out, result


def _from_lists(first: Any, rest: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    items = [first, *rest]
    result = items.pop() if len(items) % 2 else None

    def letters(sub: Any) -> str:
        return "".join("..." if s is Ellipsis else string.ascii_letters[int(s)] for s in sub)

    left = ",".join(letters(s) for s in items[1::2])
    return left if result is None else f"{left}->{letters(result)}", tuple(items[0::2])


def _simplified(letters: str, t: Tensor, sizes: dict[str, Dim]) -> Term:
    """Take diagonals of repeated letters; drop axes of size 1 that stand for a larger size (broadcasting in `...`)."""
    for c in sorted(set(letters)):
        while letters.count(c) > 1:
            a = letters.index(c)
            b = letters.index(c, a + 1)
            i = iota((t.shape[a],))
            t = emit("gather", t, i, i, axes=(a, b))  # the diagonal comes first
            letters = c + letters[:a] + letters[a + 1 : b] + letters[b + 1 :]
    drop = [k for k, c in enumerate(letters) if t.shape[k] == 1 and sizes[c] != 1]
    if drop:
        t = emit("reshape", t, shape=tuple(d for k, d in enumerate(t.shape) if k not in drop))
        letters = "".join(c for k, c in enumerate(letters) if k not in drop)
    return letters, t


def _sum_out(term: Term, keep: set[str]) -> Term:
    letters, t = term
    axes = tuple(k for k, c in enumerate(letters) if c not in keep)
    if axes:
        t = emit("sum", t, axes=axes)
        letters = "".join(c for c in letters if c in keep)
    return letters, t


def _estimate(d: Dim) -> int:
    """A number for a symbolic size, to compare costs: symbols count as 64."""
    if not isinstance(d, Poly):
        return d
    from fluxir.ir.dims import evaluate, symbols_of

    return evaluate(d, dict.fromkeys(symbols_of(d), 64))


def _cheapest(terms: list[Term], output: str, sizes: dict[str, Dim]) -> tuple[int, int]:
    """The pair whose product grows memory least (the greedy rule of opt_einsum), then the one with the fewest products."""
    best: tuple[Any, int, int] | None = None

    def volume(letters: Any) -> int:
        n = 1
        for c in letters:
            n *= _estimate(sizes[c])
        return n

    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            a, b = set(terms[i][0]), set(terms[j][0])
            others = set(output).union(*[set(t[0]) for k, t in enumerate(terms) if k not in (i, j)])
            kept = (a | b) & others
            cost = (volume(kept) - volume(a) - volume(b), volume(a | b))
            if best is None or cost < best[0]:
                best = (cost, i, j)
    assert best is not None
    return best[1], best[2]


def _contract(a: Term, b: Term, keep: set[str]) -> Term:
    """The product of two terms, summed over shared letters that nothing else needs."""
    a = _sum_out(a, keep | set(b[0]))
    b = _sum_out(b, keep | set(a[0]))
    (x, s), (y, t) = a, b
    shared = [c for c in x if c in y]
    batch = [c for c in shared if c in keep]
    summed = [c for c in shared if c not in keep]
    free_x, free_y = [c for c in x if c not in shared], [c for c in y if c not in shared]
    letters = "".join([*batch, *free_x, *free_y])
    if not summed and not (free_x and free_y):  # an elementwise product: no contraction is needed
        return letters, emit("mul", _aligned(x, s, letters), _aligned(y, t, letters))
    r = emit(
        "dot",
        s,
        t,
        lhs_contract=tuple(x.index(c) for c in summed),
        rhs_contract=tuple(y.index(c) for c in summed),
        lhs_batch=tuple(x.index(c) for c in batch),
        rhs_batch=tuple(y.index(c) for c in batch),
    )
    return letters, r


def _aligned(letters: str, t: Tensor, target: str) -> Tensor:
    """The axes in the order of `target`, size 1 where it has none."""
    order = [c for c in target if c in letters]
    perm = tuple(letters.index(c) for c in order)
    t = t if perm == tuple(range(len(perm))) else emit("transpose", t, perm=perm)
    shape = iter(t.shape)
    full = tuple(next(shape) if c in letters else 1 for c in target)
    return t if full == t.shape else emit("reshape", t, shape=full)


__all__ = [
    "einsum",
]  # fmt: skip
