"""Reads the inside of coarse tokens: attribute lists, literals, constant data, facts. The inverse of the printer's `attr`.

Invariants: nothing is evaluated, every number has a bounded number of digits, data takes memory in proportion to the
text it is written in, and every failure is a `TextError` that knows its offset. What a value means to its op is not
known here; `normalise_attrs` checks that later.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fluxir.errors import FluxError
from fluxir.ir.core import array_digest
from fluxir.ir.dims import INF, Dim, Facts, Opaque, Poly, assuming, parse_dim, symbols_of
from fluxir.ir.dtypes import DType
from fluxir.ir.types import TensorType, Type, VectorType, parse_type

MAX_RANK = 32  # numpy's own limit was long the same
MAX_LANES = 4096
MAX_VALUE_DEPTH = 32  # of tuples and dicts in attributes
MAX_NESTING = 60  # of divisions and maxima in a size
MAX_FACTS = 10_000
MAX_DIGITS = 64  # of one number

_STRING = r'"(?:[^"\\\n]++|\\.)*+"'
_TOKEN = re.compile(
    rf"""\s*(?:(?P<string>{_STRING}) | (?P<number>-?[0-9][\w.+\-]*) | (?P<dense>dense<[^<>]*>) | (?P<dim><[^<>]*>)
    | !(?P<type>[&\w.]+(?:\[[^\[\]]*\])?) | \#(?P<digest>[0-9a-f]+) | (?P<word>-?[A-Za-z_][\w.]*) | (?P<mark>[\[\](){{}},=:]))""",
    re.X,
)
_WORDS: dict[str, Any] = {
    "true": True, "false": False, "none": None, "inf": float("inf"), "-inf": float("-inf"), "nan": float("nan"),
}  # fmt: skip
_SYMBOL = re.compile(r"[A-Za-z_]\w*\Z")


class TextError(Exception):
    """A failure at `offset` characters into the text that was read."""

    def __init__(self, code: str, message: str, offset: int = 0, help: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.offset, self.help = code, message, offset, help


def _guarded(read: Callable[[str], Any], text: str) -> Any:
    """`read(text)` under no facts, with every way it can fail turned into a `TextError`."""
    digits = re.search(r"\d{20}", text)
    if digits:
        raise TextError("FX0109", "a number in a size has more than 19 digits", digits.start())
    try:
        with assuming(Facts()):
            return read(text)
    except FluxError as e:
        raise TextError(e.code, e.message, 0, e.help) from None
    except RecursionError:
        raise TextError("FX0109", f"{text[:60]!r} is nested too deeply") from None
    except ArithmeticError:
        raise TextError("FX0101", f"cannot read the size {text[:60]!r}: division by zero") from None


def read_dim(text: str) -> Dim:
    """A size as it is printed. Facts play no part: what was printed is in normal form and must come back as it was."""
    d: Dim = _guarded(parse_dim, text)
    _check_dim(d, text)
    return d


def _check_dim(d: Dim, text: str) -> None:
    if _nesting(d) > MAX_NESTING:
        raise TextError("FX0109", f"the size {text[:60]} is nested too deeply")
    if any(abs(c) > INF for c in ([d] if isinstance(d, int) else [c for _, c in d.terms])):
        raise TextError("FX0109", f"the size {text[:60]} is larger than any machine can hold")


def _nesting(d: Dim) -> int:
    """How deep divisions, maxima and minima stand in each other: whoever walks a size does it recursively."""
    if isinstance(d, int):
        return 0
    atoms = [a for mono, _ in d.terms for a, _ in mono if isinstance(a, Opaque)]
    return max((1 + max(_nesting(a.a), _nesting(a.b)) for a in atoms), default=0)


def read_type(text: str) -> Type:
    """A type as it is printed."""
    if text.count(",") >= MAX_RANK and text.count(",") - text.count("(") >= MAX_RANK:
        raise TextError("FX0109", f"a type has more than {MAX_RANK} dimensions")
    try:
        t: Type = _guarded(parse_type, text)
    except TextError as e:
        e.code = "FX0113" if e.code == "FX0101" else e.code
        raise
    if isinstance(t, VectorType):
        if not 1 <= t.lanes <= MAX_LANES:
            raise TextError("FX0109", f"a vector has between 1 and {MAX_LANES} lanes, not {t.lanes}")
        return t
    if len(t.shape) > MAX_RANK:
        raise TextError("FX0109", f"a type has more than {MAX_RANK} dimensions")
    for d in t.shape:
        _check_dim(d, text)
        if isinstance(d, int) and d < 0:
            raise TextError("FX0113", f"a size in {text} is negative")
    return t


def read_string(text: str, offset: int = 0) -> str:
    try:
        s = json.loads(text)
    except ValueError as e:
        raise TextError("FX0101", f"not a string literal: {e}", offset) from None
    return str(s)


def read_number(text: str, offset: int = 0) -> int | float:
    """An integer or a float, told apart by their form."""
    if len(text) > MAX_DIGITS:
        raise TextError("FX0109", f"a number has more than {MAX_DIGITS} digits", offset)
    try:
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else _float(text)
    except ValueError:
        raise TextError("FX0101", f"{text!r} is not a number", offset) from None


def _float(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?", text):
        raise ValueError(text)
    x = float(text)
    if x in (float("inf"), float("-inf")):
        raise ValueError(text)  # the infinities are spelled inf and -inf
    return x


class AttrReader:
    """Reads attribute lists; `resources` are the constants that `#digest` may name."""

    def __init__(self, resources: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.resources = resources
        self.text = ""
        self.kind: str | None = None  # of the token at hand, None at the end
        self.token = ""
        self.at = self.end = 0

    def read(self, text: str) -> dict[str, Any]:
        """`[axis=0, shape=(<B>, 4)]` as a dict."""
        self.text, self.end = text, 0
        self.advance()
        self.expect("[")
        out: dict[str, Any] = {}
        while self.token != "]" or self.kind != "mark":
            if out:
                self.expect(",")
            at = self.at
            key = self.key("=")
            if key in out:
                raise TextError("FX0106", f"the attribute {key!r} is given twice", at)
            out[key] = self.value(0)
        return out

    def advance(self) -> None:
        m = _TOKEN.match(self.text, self.end)
        if m is None:
            rest = self.text[self.end :]
            start = self.end + len(rest) - len(rest.lstrip())
            if start < len(self.text):
                raise TextError("FX0101", f"an attribute value cannot start with {self.text[start]!r}", start)
            self.kind, self.token, self.at = None, "the end", len(self.text)
            return
        self.kind = m.lastgroup
        assert self.kind is not None
        self.token, self.at, self.end = m[self.kind], m.start(self.kind), m.end()

    def expect(self, mark: str) -> None:
        if self.token != mark or self.kind != "mark":
            raise TextError("FX0101", f"expected {mark!r}, found {self.token!r}", self.at)
        self.advance()

    def key(self, mark: str) -> str:
        if self.kind not in ("word", "string"):
            raise TextError("FX0101", f"expected the name of an attribute, found {self.token!r}", self.at)
        key = self.token if self.kind == "word" else read_string(self.token, self.at)
        self.advance()
        self.expect(mark)
        return key

    def value(self, depth: int) -> Any:
        kind, token, at = self.kind, self.token, self.at
        if depth > MAX_VALUE_DEPTH:
            raise TextError("FX0109", f"attribute values are nested more than {MAX_VALUE_DEPTH} deep", at)
        if kind == "mark" and token in ("(", "{"):
            self.advance()
            return self.items(depth) if token == "(" else self.entries(depth)
        try:
            out = self.simple(kind, token, at)
        except TextError as e:
            if e.offset < at:
                e.offset += at
            raise
        self.advance()
        return out

    def items(self, depth: int) -> tuple[Any, ...]:
        out: list[Any] = []
        while self.token != ")" or self.kind != "mark":
            out.append(self.value(depth + 1))
            if self.token != ")" or self.kind != "mark":
                self.expect(",")
        self.advance()
        return tuple(out)

    def entries(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while self.token != "}" or self.kind != "mark":
            key = self.key(":")
            out[key] = self.value(depth + 1)
            if self.token != "}" or self.kind != "mark":
                self.expect(",")
        self.advance()
        return out

    def simple(self, kind: str | None, token: str, at: int) -> Any:
        match kind:
            case "number":
                return read_number(token, at)
            case "string":
                return read_string(token, at)
            case "dim":
                return read_dim(token[1:-1])
            case "type":
                return read_attr_type(token)
            case "dense":
                return read_dense(token[len("dense<") : -1])
            case "digest":
                if token not in self.resources:
                    raise TextError("FX0118", f"there is no resource #{token}", at,
                                    'a constant\'s data stands at the end: resource #... : type = "..."')  # fmt: skip
                return self.resources[token]
            case "word" if token in _WORDS:
                return _WORDS[token]
        raise TextError("FX0101", f"expected a value, found {token!r}", at,
                        'values are 3, 1.5, true, none, "text", <B*2>, !f32[4], (1, 2), {a: 1}, dense<f32[2]: 1 2>')  # fmt: skip


def read_attr_type(text: str) -> Type | DType:
    """`!f32` is an element type, `!f32[]` the type of a scalar."""
    t = read_type(text)
    return t.dtype if isinstance(t, TensorType) and not t.shape and not text.endswith("]") else t


# ---- constants --------------------------------------------------------------------------------------------------------


def static_shape(t: Type, text: str) -> tuple[int, ...]:
    if not isinstance(t, TensorType) or any(isinstance(d, Poly) for d in t.shape):
        raise TextError("FX0118", f"a constant has a tensor type of fixed sizes, not {text}")
    return tuple(d for d in t.shape if isinstance(d, int))


def element_count(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


def read_dense(text: str) -> np.ndarray[Any, Any]:
    """`f32[2]: 1.0 nan:7fc00001`: a type and its elements in row-major order; `nan:bits` keeps a NaN's payload."""
    head, colon, body = text.partition(":")
    if not colon:
        raise TextError("FX0101", "expected dense<type: elements>")
    t = read_type(head.strip())
    shape, items = static_shape(t, head.strip()), body.split()
    if element_count(shape) != len(items):
        raise TextError("FX0118", f"{len(items)} values for the {element_count(shape)} elements of {t}")
    d: DType = t.dtype
    out = np.zeros(len(items), d.numpy)
    bits = out.view(f"u{d.itemsize}")
    for i, item in enumerate(items):
        try:
            if d.is_float:
                if item.startswith("nan:") and re.fullmatch(r"[0-9a-f]{1,16}", item[4:]):
                    bits[i] = int(item[4:], 16)
                    if out[i] == out[i]:
                        raise ValueError(item)
                    continue
                x = _WORDS[item] if item in ("inf", "-inf", "nan") else float(read_number(item))
                with np.errstate(over="ignore"):
                    out[i] = x
                if abs(x) != float("inf") and np.isinf(out[i]):
                    raise ValueError(item)
            elif d.is_bool:
                out[i] = {"true": True, "false": False}[item]
            else:
                n = read_number(item)
                lo, hi = d.limits
                if not isinstance(n, int) or not lo <= n <= hi:
                    raise ValueError(item)
                out[i] = n
        except (ValueError, KeyError, OverflowError, TextError):
            raise TextError("FX0118", f"{item[:MAX_DIGITS]!r} is not a value of {d}") from None
    return _shaped(out, shape, t)


def read_resource(digest: str, t: Type, data: str) -> np.ndarray[Any, Any]:
    """Raw little-endian bytes in base64; sizes are compared before decoding, the digest after."""
    shape = static_shape(t, str(t))
    nbytes = element_count(shape) * t.dtype.itemsize
    if len(data) != (nbytes + 2) // 3 * 4:
        raise TextError("FX0118", f"resource #{digest}: {t} takes {nbytes} bytes, the text holds another number")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as e:
        raise TextError("FX0118", f"resource #{digest}: not base64: {e}") from None
    if len(raw) != nbytes:
        raise TextError("FX0118", f"resource #{digest}: {t} takes {nbytes} bytes, the text holds {len(raw)}")
    if t.dtype.is_bool and raw.translate(None, b"\0\1"):
        raise TextError("FX0118", f"resource #{digest}: a bool is a byte 0 or 1")
    out = _shaped(np.frombuffer(raw, t.dtype.numpy) if raw else np.zeros(0, t.dtype.numpy), shape, t)
    if array_digest(out) != digest:
        raise TextError(
            "FX0118",
            f"resource #{digest}: the data has the digest {array_digest(out)}",
            help="the data was changed: correct the digest here and where it is used",
        )
    return out


def _shaped(flat: np.ndarray[Any, Any], shape: tuple[int, ...], t: Type) -> np.ndarray[Any, Any]:
    try:
        out = flat.reshape(shape)
    except (ValueError, OverflowError):
        raise TextError("FX0109", f"no machine can index {t}") from None
    out.flags.writeable = False
    return out


# ---- facts ------------------------------------------------------------------------------------------------------------


def read_facts(text: str, into: Facts) -> Facts:
    """`B >= 1, T % 8 == 0, M == N*2` added to what is known."""
    bounds, multiples, equations = dict(into.bounds), dict(into.multiples), list(into.equations)
    ceilings = dict(into.ceilings)
    offset, where = 0, []
    if text.count("=") > 2 * MAX_FACTS:
        raise TextError("FX0109", f"there are more than {MAX_FACTS} facts")
    for piece in _split(text):
        start = offset + len(piece) - len(piece.lstrip())
        offset += len(piece) + 1
        m = re.fullmatch(r"(.+?)(>=|<=|==)(.+)", piece.strip())
        try:
            if m is None:
                raise TextError("FX0114", f"{piece.strip()!r} is not a fact about a size")
            left, relation, right = m[1].strip(), m[2], read_dim(m[3])
            if relation == "<=" and _SYMBOL.match(left) and not isinstance(right, int):
                if left in symbols_of(right) or left in ceilings:
                    raise TextError("FX0114", f"{piece.strip()!r}: a size has one limit, made of other sizes")
                ceilings[left] = right
            elif relation != "==":
                if not _SYMBOL.match(left) or not isinstance(right, int):
                    raise TextError("FX0114", f"{piece.strip()!r}: a bound has the form B >= 1 or B <= 4096")
                lo, hi = bounds.get(left, (0, INF))
                bounds[left] = (max(lo, right), hi) if relation == ">=" else (lo, min(hi, right))
                if bounds[left][0] > bounds[left][1]:
                    raise TextError(
                        "FX0114", f"no {left} satisfies {left} >= {bounds[left][0]} and {left} <= {bounds[left][1]}"
                    )
            elif (k := re.fullmatch(r"([A-Za-z_]\w*)\s*%\s*([0-9]+)", left)) and right == 0 and int(k[2][:19]) > 0:
                multiples[k[1]] = (
                    int(np.lcm(int(k[2][:19]), multiples.get(k[1], 1))) if k[1] in multiples else int(k[2][:19])
                )
            else:
                equations.append((read_dim(left), right))
                where.append(start)
        except TextError as e:
            e.offset, e.help = (
                start,
                e.help or "facts have the forms B >= 1, B <= 4096, K <= N, T % 8 == 0 and N == M*2",
            )
            raise
    out = Facts(bounds, multiples, tuple(equations), ceilings)
    for (a, b), start in zip(equations[len(into.equations) :], where, strict=True):
        if Facts(bounds, multiples).equal(a, b) is False:
            raise TextError("FX0114", f"{a} == {b} contradicts the bounds of its symbols", start)
    return out


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses; empty pieces fail later."""
    pieces, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    return [*pieces, text[start:]]
