"""Dimensions: integers or integer polynomials over named symbols, in normal form.

A `Dim` is an `int` or a `Poly`. A `Poly` is a sum of monomials with integer coefficients; an atom of a
monomial is a symbol (`B`) or an opaque term (`floordiv`, `max`, `min` of two dims). Two dims are equal when
their normal forms are: `B + B == 2*B`. Everything else (`a % k`, `ceildiv`) is written in these terms, so that
a proof is arithmetic on one form. `Facts` is what is known about the symbols; `facts()` is the set in force.
"""

from __future__ import annotations

import contextlib
import contextvars
import numbers
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fluxir.errors import error

Dim: TypeAlias = "int | Poly"
MAX_TERMS = 10_000  # of one product: beyond it a size is an attack or a mistake
MAX_WEIGHT = (
    20_000  # of one size, in nodes when it is written out: sharing would let a short text stand for 2**100 of them
)
MAX_DEGREE = 256  # of one product of symbols
MAX_NESTING = 100  # of floordiv, max and min: whoever walks a size recurses
MAX_TOKENS = 200_000  # of the text of a size
INF = 1 << 62  # stands for "no bound"; larger than any size a machine can hold


@dataclass(frozen=True, slots=True, order=True)
class Opaque:
    """`floordiv`, `max` or `min` of two dims, kept as one atom."""

    kind: str
    a: Any
    b: Any

    def __str__(self) -> str:
        if self.kind == "floordiv":
            return f"({_group(self.a)}//{_group(self.b)})"
        return f"{self.kind}({self.a},{self.b})"


Atom: TypeAlias = str | Opaque
Mono = tuple[tuple[Atom, int], ...]  # ((atom, power), ...), sorted; () is the constant term


def _group(d: Dim) -> str:
    s = str(d)
    return s if isinstance(d, int) and d >= 0 or re.fullmatch(r"\w+", s) else f"({s})"


def _atom_key(a: Atom) -> tuple[int, str]:
    return (0, a) if isinstance(a, str) else (1, str(a))


class Poly:
    """A polynomial that is not a constant (a constant is a plain `int`). Immutable; equal by normal form."""

    __slots__ = ("terms", "weight", "nesting", "_hash", "_text")
    terms: tuple[tuple[Mono, int], ...]
    weight: int
    nesting: int

    def __init__(self, terms: tuple[tuple[Mono, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        weight = nesting = 0
        for mono, _ in terms:
            weight += 1
            if sum(power for _, power in mono) > MAX_DEGREE:
                raise error("FX0109", f"a size became a product of more than {MAX_DEGREE} symbols")
            for atom, power in mono:
                weight += power
                if not isinstance(atom, str):
                    for d in (atom.a, atom.b):
                        if isinstance(d, Poly):
                            weight += d.weight * power
                            nesting = max(nesting, d.nesting + 1)
        if weight > MAX_WEIGHT or nesting > MAX_NESTING:
            raise error("FX0109", f"a size became an expression of {weight} parts, {nesting} deep")
        self.weight, self.nesting = weight, nesting

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    # A comparison is answered where the facts decide it, and refused (FX0301) where they do not.
    def __lt__(self, other: Dim) -> bool:
        return _decided(self, "<", other) if _is_dim(other) else NotImplemented

    def __le__(self, other: Dim) -> bool:
        return _decided(self, "<=", other) if _is_dim(other) else NotImplemented

    def __gt__(self, other: Dim) -> bool:
        return _decided(self, ">", other) if _is_dim(other) else NotImplemented

    def __ge__(self, other: Dim) -> bool:
        return _decided(self, ">=", other) if _is_dim(other) else NotImplemented

    def __str__(self) -> str:
        if self._text is None:
            out = ""
            for mono, c in self.terms:
                body = "*".join("*".join([str(a)] * p) for a, p in mono)
                mag = abs(c)
                piece = body if mag == 1 and body else f"{body}*{mag}" if body else str(mag)
                out += ("-" if c < 0 else "+" if out else "") + piece
            self._text = out
        return self._text

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise error(
            "FX0301",
            f"the truth of the symbolic size {self} is not known while tracing",
            help="compare sizes with fx.prove_equal and fx.prove_less, or specialise the size with --dim",
        )

    def __index__(self) -> int:
        raise error(
            "FX0302",
            f"the symbolic size {self} has no integer value while tracing",
            help="specialise it, or use fx.size(x, axis)",
        )

    __int__ = __index__

    # What is no size (a float, a traced tensor) is left to its own operators: `B * 0.5` is a TypeError, not 0.
    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1) if _is_dim(other) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1) if _is_dim(other) else NotImplemented

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, self, -1) if _is_dim(other) else NotImplemented

    def __neg__(self) -> Dim:
        return _sum(0, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        return mul(self, other) if _is_dim(other) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other) if _is_dim(other) else NotImplemented

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self) if _is_dim(other) else NotImplemented

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other) if _is_dim(other) else NotImplemented

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self) if _is_dim(other) else NotImplemented


def _is_dim(x: object) -> bool:
    return isinstance(x, (int, Poly, numbers.Integral))


def _decided(a: Dim, relation: str, b: Dim) -> bool:
    """`a relation b` where the facts in force decide it; FX0301 otherwise."""
    lo, hi = facts().range(_sum(a, b, -1))
    yes, no = {"<": (hi < 0, lo >= 0), "<=": (hi <= 0, lo > 0), ">": (lo > 0, hi <= 0), ">=": (lo >= 0, hi < 0)}[
        relation
    ]
    if yes or no:
        return yes
    fact = f"{a} {relation if '=' in relation else relation + '='} {b}"
    raise error(
        "FX0301",
        f"whether {a} {relation} {b} is not known while tracing",
        help=f'state a fact, for example facts="{fact}", or specialise the size with --dim',
    )


def symbol(name: str) -> Poly:
    """The dim that is just the symbol `name`."""
    return Poly(((((name, 1),), 1),))


def _terms(d: Dim) -> tuple[tuple[Mono, int], ...]:
    if isinstance(d, Poly):
        return d.terms
    return (((), int(d)),) if d else ()


def _normal(acc: dict[Mono, int]) -> Dim:
    items = [(m, c) for m, c in acc.items() if c]
    if not items:
        return 0
    if len(items) == 1 and items[0][0] == ():
        return items[0][1]
    # Highest degree first, constant last; ties by the atoms' text.
    items.sort(key=lambda t: (-sum(p for _, p in t[0]), [(_atom_key(a), -p) for a, p in t[0]]))
    return Poly(tuple(items))


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a + sign * b
    acc = dict(_terms(a))
    for m, c in _terms(b):
        acc[m] = acc.get(m, 0) + sign * c
    return _normal(acc)


def mul(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if len(_terms(a)) * len(_terms(b)) > MAX_TERMS:
        raise error("FX0109", f"a size became a sum of more than {MAX_TERMS} terms")
    acc: dict[Mono, int] = {}
    for m1, c1 in _terms(a):
        for m2, c2 in _terms(b):
            powers: dict[Atom, int] = dict(m1)
            for atom, p in m2:
                powers[atom] = powers.get(atom, 0) + p
            m = tuple(sorted(powers.items(), key=lambda t: _atom_key(t[0])))
            acc[m] = acc.get(m, 0) + c1 * c2
    return _normal(acc)


def _divide_mono(m: Mono, by: Mono) -> Mono | None:
    powers = dict(m)
    for atom, p in by:
        if powers.get(atom, 0) < p:
            return None
        powers[atom] -= p
    return tuple((a, powers[a]) for a, _ in m if powers[a])


def floordiv(a: Dim, b: Dim) -> Dim:
    """`a // b`, rounding down. Terms that `b` divides leave exactly; the rest stays opaque. `b` must be positive."""
    if isinstance(b, int):
        if b == 0:
            raise error("FX0218", f"division of the size {a} by zero")
        if isinstance(a, int):
            return a // b
        if b < 0:
            return floordiv(-a, -b)
    if a == b:
        return 1
    bt = _terms(b)
    if len(bt) != 1:
        return _atom(Opaque("floordiv", a, b))
    (bm, bc), whole, rest = bt[0], {}, {}
    for m, c in _terms(a):
        q = _divide_mono(m, bm)
        if q is not None and c % bc == 0:
            whole[q] = c // bc
        else:
            rest[m] = c
    r = _normal(rest)
    if r == 0:
        return _normal(whole)
    known = facts()
    if isinstance(b, int) and known.divides(b, r):  # T % 8 == 0 makes T//8 exact, but it has no smaller name
        return _sum(_normal(whole), _atom(Opaque("floordiv", r, b)), 1)
    lo, hi = known.range(r)
    if isinstance(b, int) and lo > -INF and hi < INF and lo // b == hi // b:
        return _sum(_normal(whole), lo // b, 1)
    return _sum(_normal(whole), _atom(Opaque("floordiv", r, b)), 1)


def _atom(o: Opaque) -> Dim:
    return Poly(((((o, 1),), 1),))


def mod(a: Dim, b: Dim) -> Dim:
    """`a % b`, with the sign of `b`."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int) and facts().divides(b, a):
        return 0
    return _sum(a, mul(b, floordiv(a, b)), -1)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """`a / b` rounded up, for positive `b`."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    if isinstance(b, int) and facts().divides(b, a):
        return floordiv(a, b)
    return floordiv(_sum(_sum(a, b, 1), 1, -1), b)


def maximum(a: Dim, b: Dim) -> Dim:
    if prove_le(b, a):
        return a
    if prove_le(a, b):
        return b
    return _atom(Opaque("max", *sorted((a, b), key=str)))


def minimum(a: Dim, b: Dim) -> Dim:
    if prove_le(a, b):
        return a
    if prove_le(b, a):
        return b
    return _atom(Opaque("min", *sorted((a, b), key=str)))


def product(dims: Any) -> Dim:
    out: Dim = 1
    for d in dims:
        out = mul(out, d)
    return out


def symbols_of(d: Dim) -> set[str]:
    """Names of all symbols that occur in `d`."""
    if isinstance(d, int):
        return set()
    out: set[str] = set()
    for mono, _ in d.terms:
        for atom, _p in mono:
            out |= {atom} if isinstance(atom, str) else symbols_of(atom.a) | symbols_of(atom.b)
    return out


def substitute(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """`d` with symbols replaced; an all-integer `env` gives an `int`."""
    return _substitute(d, env, {})


def _substitute(d: Dim, env: Mapping[str, Dim], known: dict[Opaque, Dim]) -> Dim:
    """`known` holds the opaque terms that are done: nested ones share their parts."""
    if isinstance(d, int):
        return d
    total: Dim = 0
    for mono, c in d.terms:
        term: Dim = c
        for atom, p in mono:
            if isinstance(atom, str):
                v: Dim = env.get(atom, symbol(atom))
            elif atom in known:
                v = known[atom]
            else:
                a, b = _substitute(atom.a, env, known), _substitute(atom.b, env, known)
                v = known[atom] = {"floordiv": floordiv, "max": maximum, "min": minimum}[atom.kind](a, b)
            for _ in range(p):
                term = mul(term, v)
        total = _sum(total, term, 1)
    return total


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The integer value of `d` under `env`; FX0218 names a symbol that has no value."""
    if isinstance(d, int):
        return d
    missing = symbols_of(d) - set(env)
    if missing:
        raise error("FX0218", f"the size {d} needs a value for {', '.join(sorted(missing))}")
    out = substitute(d, env)
    assert isinstance(out, int)
    return out


# ---- facts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is known about symbols: `bounds[name] = (lo, hi)`, `multiples[name] = k`, equations assumed at entry, and
    `ceilings[name]`, a size that a size known only at run time does not exceed.

    A symbol without a bound is at least 0: it is a size.
    """

    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)
    equations: tuple[tuple[Dim, Dim], ...] = ()
    ceilings: Mapping[str, Dim] = field(default_factory=dict)
    # Bounds of opaque terms: nested ones share their parts, and would be walked once for each path to them.
    _known: dict[Opaque, tuple[int, int]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def range(self, d: Dim) -> tuple[int, int]:
        """Bounds of `d` by interval arithmetic over its monomials, with symbols replaced by their ceilings where that helps."""
        lo, hi = self._interval(d)
        if self.ceilings and not isinstance(d, int):
            low, high = self._lowered(d), self._lowered(_sum(0, d, -1))
            lo = max(lo, self._interval(low)[0]) if low != d else lo
            hi = min(hi, -self._interval(high)[0])
        return lo, hi

    def _lowered(self, d: Dim) -> Dim:
        """A size that is at most `d`: where a symbol with a ceiling counts negatively, the ceiling counts instead."""
        for name in reversed(list(self.ceilings)):  # a ceiling may name symbols that came before
            changed = True
            while changed and not isinstance(d, int) and name in symbols_of(d):
                changed = False
                acc: dict[Mono, int] = {}
                for mono, c in d.terms:
                    terms: tuple[tuple[Mono, int], ...] = ((mono, c),)
                    rest = _divide_mono(mono, ((name, 1),)) if c < 0 else None
                    if rest is not None and self._interval(_normal({rest: 1}))[0] >= 0:
                        terms, changed = _terms(mul(_normal({rest: c}), self.ceilings[name])), True
                    for m, k in terms:
                        acc[m] = acc.get(m, 0) + k
                d = _normal(acc)
        return d

    def _interval(self, d: Dim) -> tuple[int, int]:
        if isinstance(d, int):
            return d, d
        lo_total = hi_total = 0
        for mono, c in d.terms:
            lo, hi = 1, 1
            for atom, p in mono:
                alo, ahi = self._atom_range(atom)
                for _ in range(p):
                    corners = [_clip(x * y) for x in (lo, hi) for y in (alo, ahi)]
                    lo, hi = min(corners), max(corners)
            a, b = sorted((_clip(lo * c), _clip(hi * c)))
            lo_total, hi_total = _clip(lo_total + a), _clip(hi_total + b)
            if a <= -INF:
                lo_total = -INF
            if b >= INF:
                hi_total = INF
        return lo_total, hi_total

    def _atom_range(self, atom: Atom) -> tuple[int, int]:
        if isinstance(atom, str):
            return self.bounds.get(atom, (0, INF))
        found = self._known.get(atom)
        if found is None:
            found = self._known[atom] = self._opaque_range(atom)
        return found

    def _opaque_range(self, atom: Opaque) -> tuple[int, int]:
        (alo, ahi), (blo, bhi) = self.range(atom.a), self.range(atom.b)
        if atom.kind == "max":
            return max(alo, blo), max(ahi, bhi)
        if atom.kind == "min":
            return min(alo, blo), min(ahi, bhi)
        if blo < 1:
            return -INF, INF
        lo = -INF if alo <= -INF else min(alo // blo, alo // bhi if bhi < INF else (0 if alo >= 0 else -1))
        hi = INF if ahi >= INF else max(ahi // blo, ahi // bhi if bhi < INF else (0 if ahi >= 0 else -1))
        return lo, hi

    def divides(self, k: int, d: Dim) -> bool:
        """Whether `k` provably divides `d`."""
        if isinstance(d, int):
            return d % k == 0
        for mono, c in d.terms:
            factor = c
            for atom, p in mono:
                if isinstance(atom, str):
                    factor *= self.multiples.get(atom, 1) ** p
            if factor % k:
                return False
        return True

    def canonical(self, d: Dim) -> Dim:
        """`d` with every equation that could be solved for a symbol substituted."""
        if isinstance(d, int) or not self.equations:
            return d
        for left, right in self.equations:
            solved = _solve(left, right)
            if solved is not None:
                d = substitute(d, {solved[0]: solved[1]})
                if isinstance(d, int):
                    return d
        return d

    def equal(self, a: Dim, b: Dim) -> bool | None:
        """True or False when provable, None when it depends on the sizes at run time."""
        a, b = self.canonical(a), self.canonical(b)
        if a == b:
            return True
        lo, hi = self.range(_sum(a, b, -1))
        if lo > 0 or hi < 0:
            return False
        if any({a, b} == {self.canonical(x), self.canonical(y)} for x, y in self.equations):
            return True
        return None

    def describe(self) -> list[str]:
        """The facts as they stand in the text form: `B >= 1`, `T % 8 == 0`, `M == N*2`."""
        out = []
        for name, (lo, hi) in self.bounds.items():
            out.append(f"{name} >= {lo}")
            if hi < INF:
                out.append(f"{name} <= {hi}")
        out += [f"{name} % {k} == 0" for name, k in self.multiples.items()]
        out += [f"{name} <= {d}" for name, d in self.ceilings.items()]
        out += [f"{a} == {b}" for a, b in self.equations]
        return out


def _clip(x: int) -> int:
    return max(-INF, min(INF, x))


def _solve(a: Dim, b: Dim) -> tuple[str, Dim] | None:
    """Solve `a == b` for a symbol that occurs once, linearly, with coefficient 1 or -1."""
    diff = _sum(a, b, -1)
    for mono, c in sorted(_terms(diff), key=lambda t: str(t), reverse=True):
        if len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], str) and abs(c) == 1:
            name = mono[0][0]
            rest = _sum(diff, mul(c, symbol(name)), -1)
            if name not in symbols_of(rest):
                return name, mul(-c, rest)
    return None


class Assumptions:
    """Facts that may grow while a program is traced: equations that cannot be decided become entry guards."""

    def __init__(self, base: Facts | None = None, record: bool = False) -> None:
        self.facts = base or Facts()
        self.record = record

    def require_equal(self, a: Dim, b: Dim) -> bool:
        known = self.facts.equal(a, b)
        if known is None and self.record:
            f = self.facts
            self.facts = Facts(f.bounds, f.multiples, (*f.equations, (a, b)), f.ceilings)
            return True
        return bool(known)


_NOTHING = Assumptions()
_current: contextvars.ContextVar[Assumptions | None] = contextvars.ContextVar("fluxir_dim_facts", default=None)


def _in_force() -> Assumptions:
    return _current.get() or _NOTHING


def facts() -> Facts:
    """The facts in force in this context."""
    return _in_force().facts


@contextlib.contextmanager
def assuming(a: Assumptions | Facts) -> Iterator[Assumptions]:
    """Make `a` the facts in force inside the `with` block."""
    a = Assumptions(a) if isinstance(a, Facts) else a
    token = _current.set(a)
    try:
        yield a
    finally:
        _current.reset(token)


def require_equal(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal; while tracing, an undecidable equation is assumed and guarded at entry."""
    return a == b or _in_force().require_equal(a, b)


def prove_equal(a: Dim, b: Dim) -> bool:
    return a == b or facts().equal(a, b) is True


def prove_le(a: Dim, b: Dim) -> bool:
    """Whether `a <= b` holds for all sizes the facts allow."""
    return facts().range(_sum(b, a, -1))[0] >= 0


def prove_lt(a: Dim, b: Dim) -> bool:
    return facts().range(_sum(b, a, -1))[0] > 0


# ---- text -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(//|[-+*%(),]))")


def parse_dim(text: str) -> Dim:
    """Read a dim as it is printed: `B*784+3`, `((B+7)//8)`, `max(B,4)`; no `eval`. Raises FX0101, FX0109."""
    tokens: list[str] = []
    pos = 0
    text = text.strip()
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    while pos < len(text):
        m = _TOKEN.match(text, pos)
        if not m or len(m.group(0)) > 4000:
            raise error(
                "FX0101", f"cannot read the size {shown}", help="a size is an integer or an expression such as B*4+1"
            )
        if len(tokens) > MAX_TOKENS:
            raise error("FX0109", f"the size {shown} is longer than {MAX_TOKENS} tokens")
        tokens.append(m.group(0).strip())
        pos = m.end()
    tokens.append("")
    at = 0

    def take(expected: str | None = None) -> str:
        nonlocal at
        t = tokens[at]
        if expected is not None and t != expected:
            raise error("FX0101", f"cannot read the size {shown}: expected {expected!r}, found {t or 'the end'!r}")
        at += 1
        return t

    def primary(depth: int) -> Dim:
        if depth > 2 * MAX_NESTING + 1:
            raise error("FX0109", f"the size {shown} is nested too deeply")
        t = take()
        if t == "(":
            v = expr(depth + 1)
            take(")")
            return v
        if t == "-":
            return _sum(0, primary(depth + 1), -1)
        if t.isdigit():
            return int(t)
        if t in ("max", "min") and tokens[at] == "(":
            take("(")
            a = expr(depth + 1)
            take(",")
            b = expr(depth + 1)
            take(")")
            return maximum(a, b) if t == "max" else minimum(a, b)
        if t and (t[0].isalpha() or t[0] == "_"):
            return symbol(t)
        raise error("FX0101", f"cannot read the size {shown} near {t or 'the end'!r}")

    def term(depth: int) -> Dim:
        v = primary(depth)
        while tokens[at] in ("*", "//", "%"):
            op = take()
            w = primary(depth)
            v = mul(v, w) if op == "*" else floordiv(v, w) if op == "//" else mod(v, w)
        return v

    def expr(depth: int) -> Dim:
        v = term(depth)
        if tokens[at] not in ("+", "-"):
            return v
        acc = dict(_terms(v))  # brought into normal form once, for sums of many terms
        while tokens[at] in ("+", "-"):
            sign = 1 if take() == "+" else -1
            for m, c in _terms(term(depth)):
                acc[m] = acc.get(m, 0) + sign * c
        return _normal(acc)

    out = expr(0)
    take("")
    return out


def as_dim(x: Any) -> Dim:
    """A dim from an int, a Poly, an integer-like numpy scalar, or text (`"B"`, `"2*T"`)."""
    if isinstance(x, Poly):
        return x
    if isinstance(x, str):
        return parse_dim(x)
    try:
        n = x.__index__()
    except AttributeError:
        raise error("FX0218", f"{x!r} is not a size", help="a size is an integer or a symbol such as 'B'") from None
    return int(n)
