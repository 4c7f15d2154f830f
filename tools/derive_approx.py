"""Derive every coefficient of `fluxir/ops/approx` and write `fluxir/ops/approx/coefficients.py`.

    python tools/derive_approx.py            derive all and write the file (about a minute)
    python tools/derive_approx.py NAME ...   derive these only and print them with their errors

Method: the minimax polynomial of a weighted error by the Remez exchange on a dense Chebyshev grid, in 320-bit mpmath
arithmetic (Remez 1934; Muller, "Elementary Functions", 3rd ed., section 3.6). The weight turns the error of the
polynomial into the relative error of the function that it ends up in. Coefficients are then rounded to the format
from the lowest order up, and after each rounding the ones that are left are fitted again, so that they absorb the
rounding error (a greedy form of the idea of Brisebarre, Muller and Tisserand, "Computing machine-efficient polynomial
approximations", 2006).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpmath import mp, mpf

mp.prec = 320

MANTISSA = {"f32": 24, "f64": 53}
OUTPUT = Path(__file__).resolve().parent.parent / "fluxir" / "ops" / "approx" / "coefficients.py"


def round_to(x: mpf, fmt: str) -> mpf:
    """The nearest float of the format (normal range), half to even."""
    if x == 0:
        return mpf(0)
    _, exponent = mp.frexp(x)
    shift = MANTISSA[fmt] - int(exponent)
    return mp.ldexp(mp.nint(mp.ldexp(x, shift)), -shift)


def split(x: mpf, fmt: str, parts: int) -> tuple[mpf, ...]:
    """`x` as a sum of `parts` floats, largest first."""
    out = []
    for _ in range(parts):
        out.append(round_to(x, fmt))
        x -= out[-1]
    return tuple(out)


# ---- minimax fitting


@dataclass(frozen=True)
class Fit:
    """Approximate `target` on [low, high] by a polynomial of `terms` coefficients, minimising max |weight * error|."""

    target: Callable[[mpf], mpf]
    low: mpf
    high: mpf
    terms: int
    weight: Callable[[mpf], mpf]


def evaluate(coefficients: Sequence[mpf], x: mpf) -> mpf:
    acc = mpf(0)
    for c in reversed(coefficients):
        acc = acc * x + c
    return acc


def remez(xs: Sequence[mpf], ys: Sequence[mpf], ws: Sequence[mpf], terms: int) -> tuple[list[mpf], mpf]:
    """Minimax polynomial on a grid: coefficients and the largest weighted error."""
    count = len(xs)
    middle, radius = (xs[0] + xs[-1]) / 2, abs(xs[0] - xs[-1]) / 2
    start = [middle - radius * mp.cos(mp.pi * i / terms) for i in range(terms + 1)]
    ascending = xs[0] < xs[-1]
    assert ascending
    picks, at = [], 0
    for s in start:
        while at < count - 1 and abs(xs[at + 1] - s) <= abs(xs[at] - s):
            at += 1
        picks.append(at)
        at = min(at + 1, count - 1)
    best: tuple[list[mpf], mpf] | None = None
    for _ in range(30):
        rows = mp.matrix(terms + 1, terms + 1)
        right = mp.matrix(terms + 1, 1)
        for i, p in enumerate(picks):
            power = mpf(1)
            for j in range(terms):
                rows[i, j] = power
                power *= xs[p]
            rows[i, terms] = (-1) ** i / ws[p]
            right[i] = ys[p]
        solution = mp.lu_solve(rows, right)
        coefficients = [solution[j] for j in range(terms)]
        level = abs(solution[terms])
        errors = [w * (evaluate(coefficients, x) - y) for x, y, w in zip(xs, ys, ws, strict=True)]
        worst = max(abs(e) for e in errors)
        if best is None or worst < best[1]:
            best = (coefficients, worst)
        if worst <= level * mpf("1.02"):
            break
        picks = alternation(errors, terms + 1)
    assert best is not None
    return best


def alternation(errors: Sequence[mpf], want: int) -> list[int]:
    """Indices of `want` extrema of alternating sign that keep the largest one."""
    groups: list[int] = []
    for i, e in enumerate(errors):
        if groups and (e > 0) == (errors[groups[-1]] > 0):
            if abs(e) > abs(errors[groups[-1]]):
                groups[-1] = i
        else:
            groups.append(i)
    while len(groups) > want:
        if len(groups) == want + 1:
            groups.pop(0 if abs(errors[groups[0]]) < abs(errors[groups[-1]]) else -1)
            continue
        weakest = min(range(len(groups)), key=lambda i: abs(errors[groups[i]]))
        if weakest in (0, len(groups) - 1):
            groups.pop(weakest)
        else:  # drop it with its smaller neighbour, so that signs still alternate
            other = min((weakest - 1, weakest + 1), key=lambda i: abs(errors[groups[i]]))
            for i in sorted((weakest, other), reverse=True):
                groups.pop(i)
    if len(groups) < want:  # a degenerate error curve: fill with other grid points, in order
        spare = [i for i in range(0, len(errors), max(1, len(errors) // (4 * want))) if i not in groups]
        groups = sorted(groups + spare[: want - len(groups)])
    return groups


def fit_rounded(fit: Fit, fmt: str, greedy: int = 6) -> tuple[tuple[mpf, ...], mpf]:
    """Coefficients rounded to the format, and the weighted error of the rounded polynomial."""
    count = 24 * (fit.terms + 2)
    middle, radius = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    xs = [middle - radius * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    xs = [x for x in xs if abs(x) > mpf("1e-12")]
    ys = [fit.target(x) for x in xs]
    ws = [abs(fit.weight(x)) for x in xs]
    done: list[mpf] = []
    rest_y, rest_w = list(ys), list(ws)
    while len(done) < fit.terms:
        coefficients, _ = remez(xs, rest_y, rest_w, fit.terms - len(done))
        if len(done) >= greedy:
            done += [round_to(c, fmt) for c in coefficients]
            break
        done.append(round_to(coefficients[0], fmt))
        rest_y = [(y - done[-1]) / x for x, y in zip(xs, rest_y, strict=True)]
        rest_w = [w * abs(x) for x, w in zip(xs, rest_w, strict=True)]
    worst = max(w * abs(evaluate(done, x) - y) for x, y, w in zip(xs, ys, ws, strict=True))
    return tuple(done), worst


# ---- the functions

LN2 = mp.log(2)
REDUCED = LN2 / 2 * mpf("1.001")
"""Bound of |r| after the reduction x = k ln 2 + r; a little more than ln2/2, for k is rounded from a rounded product."""
ROOT_LOW, ROOT_HIGH = mp.sqrt(mpf(1) / 2) - 1, mp.sqrt(2) - 1
"""Range of f = m - 1 for a significand m in [sqrt(1/2), sqrt(2))."""


def exp_tail(r: mpf) -> mpf:
    """(e^r - 1 - r) / r^2"""
    return (mp.expm1(r) - r) / r**2


def log_tail(f: mpf) -> mpf:
    """(log(1 + f) - f + f^2/2) / f^3"""
    return (mp.log1p(f) - f + f * f / 2) / f**3


def atanh_tail(z: mpf) -> mpf:
    """(2 atanh(s)/s - 2) / z for s = sqrt(z)"""
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) / s - 2) / z


def odd_tail(function: Callable[[mpf], mpf]) -> Callable[[mpf], mpf]:
    """(function(x)/x - 1) / z for x = sqrt(z), of an odd function with slope 1."""

    def tail(z: mpf) -> mpf:
        x = mp.sqrt(z)
        return (function(x) / x - 1) / z

    return tail


def odd_weight(function: Callable[[mpf], mpf]) -> Callable[[mpf], mpf]:
    """What an error of `odd_tail(function)` does to the relative error of the function."""

    def weight(z: mpf) -> mpf:
        x = mp.sqrt(z)
        return x * z / function(x)

    return weight


def odd_fit(function: Callable[[mpf], mpf], limit: mpf, terms: int) -> Fit:
    """x + x z P(z) for |x| <= limit."""
    return Fit(odd_tail(function), mpf(0), limit**2, terms, odd_weight(function))


def erfcx_fit(center: str, low: str, high: str, terms: int) -> Fit:
    """erfc(a) e^(a^2) (1 + 2a) as a polynomial in t = (a - center) / (a + center), relative error."""
    c = mpf(center)

    def target(t: mpf) -> mpf:
        a = c * (1 + t) / (1 - t)
        return mp.erfc(a) * mp.exp(a * a) * (1 + 2 * a)

    return Fit(
        target, (mpf(low) - c) / (mpf(low) + c), (mpf(high) - c) / (mpf(high) + c), terms, lambda t: 1 / target(t)
    )


def stirling_tail(v: mpf) -> mpf:
    """x (lgamma(x) - (x - 1/2) log x + x - log(2 pi)/2) for v = 1/x^2"""
    x = 1 / mp.sqrt(v)
    return x * (mp.loggamma(x) - (x - mpf(1) / 2) * mp.log(x) + x - mp.log(2 * mp.pi) / 2)


def lgamma_two_tail(t: mpf) -> mpf:
    """(lgamma(2 + t) - t (1 - gamma)) / t^2"""
    return (mp.loggamma(2 + t) - t * (1 - mp.euler)) / t**2


Pair = dict[str, Fit]
QUARTER_PI = mp.pi / 4 * mpf("1.0001")

FITS: dict[str, Pair] = {
    "exp": {
        fmt: Fit(exp_tail, -REDUCED, REDUCED, n, lambda r: r**2 / mp.exp(r)) for fmt, n in (("f32", 5), ("f64", 10))
    },
    "exp2": {
        fmt: Fit(lambda r: (mp.expm1(r * LN2)) / r, mpf(-0.5), mpf(0.5), n, lambda r: r / mp.exp(r * LN2))
        for fmt, n in (("f32", 6), ("f64", 11))
    },
    "log": {
        "f32": Fit(log_tail, ROOT_LOW, ROOT_HIGH, 9, lambda f: f**3 / mp.log1p(f)),
        "f64": Fit(atanh_tail, mpf(0), mpf("0.02945"), 7, lambda z: z * mp.sqrt(z) / (2 * mp.atanh(mp.sqrt(z)))),
    },
    "sinh": {fmt: odd_fit(mp.sinh, REDUCED, n) for fmt, n in (("f32", 3), ("f64", 6))},
    "cosh": {
        fmt: Fit(lambda z: (mp.cosh(mp.sqrt(z)) - 1) / z, mpf(0), REDUCED**2, n, lambda z: z / mp.cosh(mp.sqrt(z)))
        for fmt, n in (("f32", 3), ("f64", 6))
    },
    "tanh": {fmt: odd_fit(mp.tanh, mpf("0.625"), n) for fmt, n in (("f32", 5), ("f64", 12))},
    "sin": {fmt: odd_fit(mp.sin, QUARTER_PI, n) for fmt, n in (("f32", 3), ("f64", 6))},
    "cos": {
        fmt: Fit(
            lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
            mpf(0),
            QUARTER_PI**2,
            n,
            lambda z: z**2 / mp.cos(mp.sqrt(z)),
        )
        for fmt, n in (("f32", 3), ("f64", 6))
    },
    "asin": {fmt: odd_fit(mp.asin, mpf("0.5001"), n) for fmt, n in (("f32", 5), ("f64", 12))},
    "atan": {fmt: odd_fit(mp.atan, mpf("0.4143"), n) for fmt, n in (("f32", 5), ("f64", 11))},
    "erf": {
        fmt: Fit(
            lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1,
            mpf(0),
            limit**2,
            n,
            lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
        )
        for fmt, limit, n in (("f32", mpf("0.9"), 6), ("f64", mpf(1), 12))
    },
    # erf(a) = 1 - exp(-polynomial): the error wanted is absolute, that of 1 - erf
    "erf_exponent": {
        fmt: Fit(lambda a: -mp.log(mp.erfc(a)), low, high, n, mp.erfc)
        for fmt, low, high, n in (("f32", mpf("0.9"), mpf("3.95"), 7), ("f64", mpf(1), mpf(6), 18))
    },
    "erfcx": {"f32": erfcx_fit("2", "0.9", "10.1", 9), "f64": erfcx_fit("3.5", "1", "27.3", 22)},
    "cbrt_seed": {  # of x**(-1/3); Newton steps do the rest
        "f32": Fit(lambda m: mp.cbrt(1 / m), mpf(1), mpf(2), 4, mp.cbrt),
        "f64": Fit(lambda m: mp.cbrt(1 / m), mpf(1), mpf(2), 5, mp.cbrt),
    },
    "pow_log": {  # atanh(s)/s - 1 = z (1/3 + z P(z)): the first term is taken in twice the precision
        fmt: Fit(lambda z: (atanh_tail(z) / 2 - mpf(1) / 3) / z, mpf(0), mpf("0.02945"), n, lambda z: z**2)
        for fmt, n in (("f32", 4), ("f64", 8))
    },
    "lgamma_two": {
        "f64": Fit(lgamma_two_tail, mpf("-0.5859"), mpf("0.5"), 20, lambda t: t**2 / mp.loggamma(2 + t)),
    },
    "stirling": {"f64": Fit(stirling_tail, mpf("1e-6"), mpf(1) / 64, 6, lambda v: mp.sqrt(v) / 8)},
    "sinpi": {
        "f64": Fit(
            lambda z: (mp.sinpi(mp.sqrt(z)) / mp.sqrt(z) / mp.pi - 1) / z,
            mpf(0),
            mpf("0.25"),
            9,
            lambda z: mp.sqrt(z) * z * mp.pi / mp.sinpi(mp.sqrt(z)),
        )
    },
}

CONSTANTS: dict[str, tuple[mpf, int]] = {
    "ln2": (LN2, 2),
    "log2_e": (1 / LN2, 2),
    "log10_e": (1 / mp.log(10), 2),
    "log10_2": (mp.log(2) / mp.log(10), 2),
    "half_pi": (mp.pi / 2, 3),
    "pi": (mp.pi, 2),
    "quarter_pi": (mp.pi / 4, 2),
    "third": (mpf(1) / 3, 2),
    "two_log2_e": (2 / LN2, 2),
    "euler_gamma": (+mp.euler, 2),
    "one_less_euler_gamma": (1 - mp.euler, 2),
    "half_log_two_pi_less_half": ((mp.log(2 * mp.pi) - 1) / 2, 1),
    "cbrt_half": (mp.cbrt(mpf(1) / 2), 1),
    "cbrt_quarter": (mp.cbrt(mpf(1) / 4), 1),
}
"""name -> (value, number of floats it is split into)."""


def short_ln2(fmt: str) -> tuple[mpf, mpf]:
    """ln 2 split so that k times the first part is exact for every exponent k that occurs (Cody and Waite)."""
    keep = {"f32": 24 - 9, "f64": 53 - 12}[fmt]
    high = mp.ldexp(mp.nint(mp.ldexp(LN2, keep)), -keep)
    return high, round_to(LN2 - high, fmt)


def short_log10_2(fmt: str) -> tuple[mpf, mpf]:
    """log10(2), split like `short_ln2`."""
    value = mp.log(2) / mp.log(10)
    keep = {"f32": 24 - 9, "f64": 53 - 12}[fmt]
    high = mp.ldexp(mp.nint(mp.ldexp(value, keep)), -keep)
    return high, round_to(value - high, fmt)


SPECIAL: dict[str, Callable[[str], tuple[mpf, ...]]] = {"ln2_short": short_ln2, "log10_2_short": short_log10_2}


def two_over_pi_words() -> list[int]:
    """The binary digits of 2/pi after the point, 32 to a word: enough for the largest double."""
    with mp.workprec(1400):
        digits = int(mp.floor(mp.ldexp(2 / mp.pi, 40 * 32)))
    return [(digits >> (32 * (39 - i))) & 0xFFFFFFFF for i in range(40)]


# ---- output

HEADER = '''"""Coefficients of the recipes, as `tools/derive_approx.py` derived them; edit that script, not this file.

`COEFFICIENTS[name][format]` are polynomial coefficients from the constant term up, exactly representable in the format.
The comment beside each gives log2 of the largest error that the (rounded) polynomial causes in the function, relative
to the function. `CONSTANTS[name][format]` are real numbers as unevaluated sums of floats, largest first.
"""

from __future__ import annotations

# fmt: off
'''


def literal(x: mpf) -> str:
    value = float(x)
    assert mpf(value) == x, "a coefficient is not a double"
    return repr(value)


def write_tuple(values: Sequence[mpf], indent: str) -> str:
    return "(\n" + "".join(f"{indent}    {literal(v)},\n" for v in values) + f"{indent})"


def write_row(values: Sequence[mpf]) -> str:
    return "(" + ", ".join(literal(v) for v in values) + (",)" if len(values) == 1 else ")")


def derive(names: Sequence[str]) -> str:
    lines = ["COEFFICIENTS: dict[str, dict[str, tuple[float, ...]]] = {"]
    for name in names:
        lines.append(f'    "{name}": {{')
        for fmt, fit in FITS[name].items():
            coefficients, worst = fit_rounded(fit, fmt)
            error = f"2**{float(mp.log(worst, 2)):.1f}"
            print(f"{name:16} {fmt} {fit.terms:3} terms  error {error}", file=sys.stderr, flush=True)
            lines.append(f'        "{fmt}": {write_tuple(coefficients, "        ")},  # {error}')
        lines.append("    },")
    lines.append("}")
    return "\n".join(lines) + "\n"


def constants() -> str:
    lines = ["CONSTANTS: dict[str, dict[str, tuple[float, ...]]] = {"]
    for name, (value, parts) in CONSTANTS.items():
        lines.append(f'    "{name}": {{')
        lines += [f'        "{fmt}": {write_row(split(value, fmt, parts))},' for fmt in MANTISSA]
        lines.append("    },")
    for name, make in SPECIAL.items():
        lines.append(f'    "{name}": {{')
        lines += [f'        "{fmt}": {write_row(make(fmt))},' for fmt in MANTISSA]
        lines.append("    },")
    lines.append("}")
    words = two_over_pi_words()
    lines += ["", "TWO_OVER_PI_WORDS: tuple[int, ...] = ("]
    lines += ["    " + " ".join(f"0x{w:08X}," for w in words[i : i + 8]) for i in range(0, len(words), 8)]
    lines += [")", '"""The binary digits of 2/pi after the point, 32 to a word."""']
    return "\n".join(lines) + "\n"


def source() -> str:
    """The text of `coefficients.py`."""
    return HEADER + "\n" + derive(list(FITS)) + "\n" + constants()


def main(arguments: Sequence[str]) -> None:
    if arguments:
        print(derive(arguments))
        return
    OUTPUT.write_text(source())


if __name__ == "__main__":
    main(sys.argv[1:])
