"""Loop IR to loop IR that has a direct spelling on the target: no op is left that would become a library call.

`legalize(func, target)` is the only door; it returns `func` itself where nothing had to change. The rules, in order:

1. f16 and bf16 arithmetic is done in f32 and rounded once an op (`select`, moves and bit casts stay as they are).
2. Casts to and from f16 and bf16 meet in f32; the last step is integer code where the target has no instruction.
3. An op without an LLVM spelling for its kind of type (`OpDef.llvm`) is replaced by its recipe (`OpDef.approx`).
4. `fma` and rounding are emulated on a target without instructions for them: the same bits, more slowly.

Rules apply to what recipes emit too, because recipes write through a builder that legalises. Works on vectors alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.codegen.iterate import expand_iterate
from fluxir.errors import Location, error
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.opdef import OpDef, lookup
from fluxir.ir.types import MemType
from fluxir.target import Target

__all__ = ["Needs", "expansion", "legalize", "needs_of", "rule_of"]

_MOVES = frozenset({"select", "bitcast", "cast", "const", "call", "copy", "if", "for", "while", "launch"})
Rule = Callable[..., Any]
"""rule(builder, *operands) -> value; `Any` because a builder makes its methods as they are asked for."""


@dataclass(frozen=True)
class Needs:
    """What the target cannot do itself."""

    convert_f16: bool
    convert_bf16: bool
    fma: bool
    rounding: bool


def needs_of(target: Target) -> Needs:
    """Which of the emulations a target needs."""
    if target.kind == "nvptx":
        return Needs(False, not target.has("bf16"), False, False)
    return Needs(not target.has("half"), True, not target.has("fma"), not target.has("round"))


def legalize(f: Func, target: Target, defer: bool = False) -> Func:
    """`f` in ops that `target` spells directly. FX0502 for an op that has neither spelling nor recipe.

    With `defer` only ops whose recipe loops or looks at its operands are replaced; the others keep their names, and
    whoever writes them out expands them (see inline.py).
    """
    f = expand_iterate(f)
    needs = needs_of(target)
    if all((defer and not _is_involved(op)) or rule_of(op, needs) is None for op in f.walk()):
        return f
    b = _LegalBuilder(needs)
    env: dict[Value, Value] = {}
    _rewrite(b, f.block, env, defer)
    return f.with_block(Block(f.block.args, b.ops, [env.get(v, v) for v in f.block.outs]))


def rule_of(op: Op, needs: Needs) -> Rule | None:
    """What replaces an op, as `rule(builder, *operands) -> value`; None where it is legal."""
    return _rule(op.defn, op.operands, op.attrs, needs)


def expansion(op: Op, needs: Needs) -> tuple[list[Value], list[Op], Value]:
    """The recipe of an op in legal ops: fresh arguments of its operands' types, the ops, the result."""
    rule = rule_of(op, needs)
    assert rule is not None
    b = _LegalBuilder(needs)
    args = [Value(v.type, None, i) for i, v in enumerate(op.operands)]
    result = rule(b, *args)
    return args, b.ops, result


def _is_involved(op: Op) -> bool:
    """Whether a recipe may loop, or differ for constant operands."""
    return op.name in ("fmod", "remainder", "floordiv") or (op.name == "pow" and op.result.dtype.is_integer)


def _rewrite(b: _LegalBuilder, block: Block, env: dict[Value, Value], defer: bool) -> None:
    for op in block.ops:
        operands = [env.get(v, v) for v in op.operands]
        blocks = []
        for inner in op.blocks:
            ib = _LegalBuilder(b.needs)
            scope = dict(env)
            _rewrite(ib, inner, scope, defer)
            blocks.append(Block(inner.args, ib.ops, [scope.get(v, v) for v in inner.outs]))
        rule = None if defer and not _is_involved(op) else _rule(op.defn, operands, op.attrs, b.needs)
        b.loc = op.loc
        if rule is not None:
            env[op.result] = rule(b, *operands)
        elif blocks or any(x is not y for x, y in zip(operands, op.operands, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            env.update(zip(op.results, b.append(new), strict=True))
        else:
            b.append(op)


class _LegalBuilder(Builder):
    """A builder whose every op is legal: it applies the rules to what is emitted."""

    def __init__(self, needs: Needs, loc: Location | None = None) -> None:
        super().__init__(loc)
        self.needs = needs

    def child(self) -> Builder:
        return _LegalBuilder(self.needs, self.loc)

    def emit(
        self, name: str, /, *operands: Any, blocks: Sequence[Block] = (), loc: Location | None = None, **attrs: Any
    ) -> tuple[Value, ...]:
        values = self._operands(operands)
        rule = _rule(lookup(name), values, attrs, self.needs)
        if rule is not None:
            return (rule(self, *values),)
        return super().emit(name, *values, blocks=blocks, loc=loc, **attrs)


def _rule(d: OpDef, operands: Sequence[Value], attrs: Mapping[str, Any], needs: Needs) -> Rule | None:
    """What replaces an op, or None where it is legal."""
    if d.name == "reduce_lanes" and operands[0].dtype.is_float and operands[0].dtype.bits == 16:
        return lambda b, *xs: _in_f32(b, d.name, attrs, xs)
    if d.category not in ("elementwise", "compare") or not operands or isinstance(operands[0].type, MemType):
        return None
    if d.name == "cast":
        return _cast_rule(operands[0].dtype, dtype_of(attrs["dtype"]), needs)
    if d.name in _MOVES:
        return None
    t: DType = operands[0].dtype
    if t.is_float and t.bits == 16:
        return lambda b, *xs: _in_f32(b, d.name, attrs, xs)
    if t.is_float and d.name == "fma" and needs.fma:
        return _fma_f32 if t.bits == 32 else _fma_f64
    if t.is_float and needs.rounding and d.name in _ROUNDING:
        return _ROUNDING[d.name]
    if d.llvm is None or (isinstance(d.llvm, Mapping) and t.kind not in d.llvm):
        if d.approx is None:
            raise error("FX0502", f"{d.name} on {t} has neither an instruction nor a recipe")
        return d.approx
    return None


# ---- small floats ---------------------------------------------------------------------------------------------------


def _in_f32(b: Any, name: str, attrs: Mapping[str, Any], xs: Sequence[Value]) -> Any:
    d = xs[0].dtype
    (r,) = b.emit(name, *[b.cast(x, dtype="f32") for x in xs], **attrs)
    return b.cast(r, dtype=d) if r.dtype.name == "f32" else r


def _cast_rule(a: DType, z: DType, needs: Needs) -> Rule | None:
    small = [d for d in (a, z) if d.is_float and d.bits == 16]
    if a == z or not small:
        return None
    if a in small and z.name != "f32":
        return lambda b, x: b.cast(b.cast(x, dtype="f32"), dtype=z)
    if z in small and a.name != "f32":
        return lambda b, x: b.cast(b.cast(x, dtype="f32"), dtype=z)
    if small[0].name == "bf16":
        return (_bf16_to_f32 if a in small else _f32_to_bf16) if needs.convert_bf16 else None
    return (_f16_to_f32 if a in small else _f32_to_f16) if needs.convert_f16 else None


def _bits(b: Any, x: Value) -> Any:
    """The bits of an f32 as u32."""
    return b.bitcast(x, dtype="u32")


def _bf16_to_f32(b: Any, x: Value) -> Any:
    wide = b.cast(b.bitcast(x, dtype="u16"), dtype="u32")
    return b.bitcast(b.shift_left(wide, 16), dtype="f32")


def _f32_to_bf16(b: Any, x: Value) -> Any:
    """Round to nearest even on the bits; a NaN keeps its high bits and becomes quiet."""
    u = _bits(b, x)
    odd = b.bit_and(b.shift_right(u, 16), 1)
    rounded = b.shift_right(b.add(u, b.add(odd, 0x7FFF)), 16)
    nan = b.bit_or(b.shift_right(u, 16), 0x40)
    return b.bitcast(b.cast(b.select(b.ne(x, x), nan, rounded), dtype="u16"), dtype="bf16")


def _f16_to_f32(b: Any, x: Value) -> Any:
    """The exponent is moved by a multiplication with 2**112, which makes subnormals right as well."""
    h = b.cast(b.bitcast(x, dtype="u16"), dtype="u32")
    magnitude = b.shift_left(b.bit_and(h, 0x7FFF), 13)
    finite = _bits(b, b.mul(b.bitcast(magnitude, dtype="f32"), 2.0**112))
    special = b.bit_or(magnitude, 0x7F800000)
    bits = b.select(b.ge(magnitude, 0x7C00 << 13), special, finite)
    return b.bitcast(b.bit_or(bits, b.shift_left(b.bit_and(h, 0x8000), 16)), dtype="f32")


def _f32_to_f16(b: Any, x: Value) -> Any:
    """Round to nearest even: subnormals by adding 1/2, whose last place is that of the smallest f16; others on the bits."""
    u = _bits(b, x)
    a = b.bit_and(u, 0x7FFFFFFF)
    small = b.sub(_bits(b, b.add(b.bitcast(a, dtype="f32"), 0.5)), 0x3F000000)
    odd = b.bit_and(b.shift_right(a, 13), 1)
    normal = b.shift_right(b.sub(b.add(a, b.add(odd, 0xFFF)), 112 << 23), 13)
    h = b.select(b.lt(a, 0x38800000), small, normal)
    h = b.select(b.ge(a, 0x477FF000), b.const(0x7C00, like=h), h)
    h = b.select(b.gt(a, 0x7F800000), b.const(0x7E00, like=h), h)
    h = b.bit_or(h, b.bit_and(b.shift_right(u, 16), 0x8000))
    return b.bitcast(b.cast(h, dtype="u16"), dtype="f16")


# ---- fma without the instruction ------------------------------------------------------------------------------------


def _two_sum(b: Any, x: Value, y: Value) -> tuple[Any, Any]:
    """(s, e), s + e == x + y exactly (Knuth, TAOCP vol. 2, 4.2.2)."""
    s = b.add(x, y)
    part = b.sub(s, x)
    return s, b.add(b.sub(x, b.sub(s, part)), b.sub(y, part))


def _odd_sum(b: Any, x: Value, y: Value) -> Any:
    """x + y in f64, rounded to odd: an inexact sum gets an odd last bit, so that rounding it again is harmless."""
    s, rest = _two_sum(b, x, y)
    bits = b.bitcast(s, dtype="i64")
    even = b.eq(b.bit_and(bits, 1), 0)
    inexact = b.logical_and(b.ne(rest, 0.0), b.lt(b.abs(s), float("inf")))
    away = b.eq(b.gt(rest, 0.0), b.gt(s, 0.0))
    stepped = b.select(away, b.add(bits, 1), b.sub(bits, 1))
    return b.select(b.logical_and(inexact, even), b.bitcast(stepped, dtype="f64"), s)


def _fma_f32(b: Any, x: Value, y: Value, z: Value) -> Any:
    """In f64 the product is exact and one rounding to odd leaves the second one right (Boldo and Melquiond 2008)."""
    p = b.mul(b.cast(x, dtype="f64"), b.cast(y, dtype="f64"))
    return b.cast(_odd_sum(b, p, b.cast(z, dtype="f64")), dtype="f32")


def _fma_f64(b: Any, x: Value, y: Value, z: Value) -> Any:
    """Boldo and Melquiond 2008, on Dekker's exact product. Not exact where the product's low part leaves the normal range."""
    h = b.mul(x, y)
    (x1, x2), (y1, y2) = _split(b, x), _split(b, y)
    low = b.sub(b.mul(x2, y2), b.sub(b.sub(b.sub(h, b.mul(x1, y1)), b.mul(x2, y1)), b.mul(x1, y2)))
    t, t_low = _two_sum(b, z, low)
    v, v_low = _two_sum(b, h, t)
    r = b.add(v, _odd_sum(b, t_low, v_low))
    plain = b.add(h, z)
    # Splitting overflows beyond 2**996, and infinities have no parts: the plain sum is right where it is not finite.
    usable = b.logical_and(b.lt(b.abs(plain), float("inf")), b.eq(r, r))
    return b.select(usable, r, plain)


def _split(b: Any, x: Value) -> tuple[Any, Any]:
    """Two halves of 26 bits (Dekker 1971)."""
    c = b.mul(x, 134217729.0)
    high = b.sub(c, b.sub(c, x))
    return high, b.sub(x, high)


# ---- rounding without SSE4.1 ----------------------------------------------------------------------------------------


def _round(b: Any, x: Value) -> Any:
    """Halves to even: adding 2**23 (2**52) drops the fraction. Larger numbers are integers already."""
    edge = 2.0**23 if x.dtype.bits == 32 else 2.0**52
    a = b.abs(x)
    whole = b.sub(b.add(a, edge), edge)
    return b.select(b.lt(a, edge), b.copysign(whole, x), x)


def _floor(b: Any, x: Value) -> Any:
    r = _round(b, x)
    return b.copysign(b.select(b.gt(r, x), b.sub(r, 1.0), r), x)


def _ceil(b: Any, x: Value) -> Any:
    r = _round(b, x)
    return b.copysign(b.select(b.lt(r, x), b.add(r, 1.0), r), x)


def _trunc(b: Any, x: Value) -> Any:
    return b.copysign(_floor(b, b.abs(x)), x)


_ROUNDING: dict[str, Rule] = {"round": _round, "floor": _floor, "ceil": _ceil, "trunc": _trunc}
