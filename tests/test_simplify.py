"""Every rewrite rule, tested from its own declaration: it fires on its sample, and both sides give the same bits.

Inputs are full of what breaks inexact rules: NaN, infinities, zeros of both signs, subnormals, the ends of integers.
A NaN equals any NaN; everything else is compared bit for bit, unless the rule says that it is more exact than its left
side (`ulps`).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir.ops
import fluxir.passes
from fluxir.errors import FluxError
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Func, Module, Value
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.interp import interpret
from fluxir.ir.printer import print_func
from fluxir.ir.types import tensor
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager
from fluxir.passes.rules import Match, Rule, RuleSet
from fluxir.passes.simplify import RULES, holds
from tests.programs import assert_same, random_program

CASES = [pytest.param(r, t, id=f"{r.name}-{','.join(t)}") for r in RULES.rules.values() for t in r.types]


def awkward(d: DType, shape: Any, rng: np.random.Generator) -> Any:
    """Random elements, every other one special."""
    count = int(np.prod(shape, dtype=int))
    if d.is_bool:
        return rng.random(shape) < 0.5
    if d.is_integer:
        lo, hi = d.limits
        special = [0, 1, 2, hi, lo, hi - 1, lo + 1, hi // 2]
        plain = rng.integers(max(lo, -9), 10, count)
        values = [
            special[int(i)] if s else int(p)
            for i, s, p in zip(rng.integers(len(special), size=count), rng.random(count) < 0.5, plain, strict=True)
        ]
        return np.array(values, dtype=object).astype(d.numpy).reshape(shape)
    big = {"f16": 6e4, "bf16": 3e38, "f32": 3e38, "f64": 1e308}[d.name]
    tiny = {"f16": 6e-8, "bf16": 1e-39, "f32": 1e-45, "f64": 5e-324}[d.name]
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, big, -big, tiny, -tiny, tiny * 3]
    plain = rng.normal(size=count) * 3
    values = np.where(rng.random(count) < 0.5, np.array(special)[rng.integers(len(special), size=count)], plain)
    with np.errstate(all="ignore"):
        return values.astype(d.numpy).reshape(shape)


def same_bits(a: Any, b: Any, ulps: int = 0) -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    if not dtype_of(a.dtype).is_float:
        np.testing.assert_array_equal(a, b)
        return
    x, y = a.astype(np.float64), b.astype(np.float64)
    nan = np.isnan(x) & np.isnan(y)
    same = (x == y) & (np.signbit(x) == np.signbit(y)) | nan
    if ulps:
        bits = f"i{a.dtype.itemsize}"
        distance = np.abs(a.reshape(-1).view(bits).astype(object) - b.reshape(-1).view(bits).astype(object)).reshape(
            a.shape
        )
        same |= (distance <= ulps) & (np.signbit(x) == np.signbit(y))
    assert same.all(), f"{a[~same]} became {b[~same]}"


def built(r: Rule, types: tuple[str, ...]) -> Module:
    f = build_func(
        "f", [tensor(t) for t in types], lambda b, *xs: r.before(b, *xs), [f"x{i}" for i in range(len(types))]
    )
    m = Module("m", {"f": f})
    verify_module(m)
    return m


def alone(r: Rule) -> RuleSet:
    rules = RuleSet()
    rules.add(r)
    return rules


@pytest.mark.parametrize(("rule", "types"), CASES)
def test_rule(rule: Rule, types: tuple[str, ...]) -> None:
    before = built(rule, types)
    fired: Counter[str] = Counter()
    after = before.with_func(alone(rule).run(before.entry, fired))
    assert fired[rule.name] >= 1, f"{rule} does not fire on its own sample"
    verify_module(after)
    rng = np.random.default_rng(len(types))
    for _ in range(4):
        args = [awkward(tensor(t).dtype, tensor(t).shape, rng) for t in types]
        for a, b in zip(interpret(before, args), interpret(after, args), strict=True):
            same_bits(a, b, rule.ulps)


@pytest.mark.parametrize(("rule", "types"), CASES[::3])
def test_all_rules_together_come_to_rest(rule: Rule, types: tuple[str, ...]) -> None:
    m = built(rule, types)
    pm = PassManager("simplify,simplify")
    after = pm.run(m)
    assert pm.records[0].rules and not pm.records[1].changed
    rng = np.random.default_rng(1)
    args = [awkward(tensor(t).dtype, tensor(t).shape, rng) for t in types]
    for a, b in zip(interpret(m, args), interpret(after, args), strict=True):
        same_bits(a, b, ulps=1)


def test_there_are_rules_and_they_know_their_place() -> None:
    assert len(RULES.rules) > 100
    for r in RULES.rules.values():
        file, line = re.fullmatch(r"(\w+\.py):(\d+)", r.where).groups()  # type: ignore[union-attr]
        text = (Path(fluxir.passes.__file__).with_name(file)).read_text().splitlines()
        near = "\n".join(text[int(line) - 2 : int(line) + 40])
        assert r.name in near or r.name.startswith("not_"), f"{r} is not at its line"
        assert r.types


# ---- what must not be simplified ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        lambda b, x, y: b.add(x, 0.0),
        lambda b, x, y: b.sub(x, -0.0),
        lambda b, x, y: b.sub(0.0, x),
        lambda b, x, y: b.sub(x, x),
        lambda b, x, y: b.mul(x, 0.0),
        lambda b, x, y: b.div(x, x),
        lambda b, x, y: b.div(x, 3.0),
        lambda b, x, y: b.div(x, 2.0**127),
        lambda b, x, y: b.div(x, float("inf")),
        lambda b, x, y: b.neg(b.sub(x, y)),
        lambda b, x, y: b.eq(x, x),
        lambda b, x, y: b.le(x, x),
        lambda b, x, y: b.logical_not(b.lt(x, y)),
        lambda b, x, y: b.cast(b.cast(x, dtype="f16"), dtype="f32"),
        lambda b, x, y: b.cast(b.cast(x, dtype="i32"), dtype="f32"),
        lambda b, x, y: b.cast(b.cast(b.cast(x, dtype="i8"), dtype="f32"), dtype="u8"),
        lambda b, x, y: b.sum(b.sum(x, axes=(0,)), axes=(0,)),
        lambda b, x, y: b.pow(x, 0.5),
        lambda b, x, y: b.pow(x, 3.0),
        lambda b, x, y: b.maximum(x, y),
        lambda b, x, y: b.minimum(b.minimum(x, y), x),
    ],
)
def test_what_looks_alike_and_is_not(body: Any) -> None:
    m = Module("m", {"f": build_func("f", [tensor("f32[3,4]"), tensor("f32[3,4]")], body)})
    rng = np.random.default_rng(0)
    after = PassManager("simplify").run(m)
    for _ in range(10):
        args = [awkward(dtype_of("f32"), (3, 4), rng) for _ in range(2)]
        for a, b in zip(interpret(m, args), interpret(after, args), strict=True):
            same_bits(a, b)


def test_a_constant_with_zeros_of_both_signs_is_not_a_zero() -> None:
    zeros = np.array([0.0, -0.0, 0.0], "f")
    m = Module(
        "m",
        {
            "f": build_func(
                "f",
                [tensor("f32[3]")],
                lambda b, x: [b.add(x, zeros), b.sub(x, zeros), b.add(x, np.full(3, -0.0, "f"))],
            )
        },
    )
    after = PassManager("simplify").run(m)
    args = [np.array([-0.0, 0.0, -0.0], "f")]
    for a, b in zip(interpret(m, args), interpret(after, args), strict=True):
        same_bits(a, b)
    assert [op.name for op in after.entry.ops if op.name != "const"] == [
        "add",
        "sub",
    ]  # only the sum with -0.0 everywhere went


def test_lossless_casts() -> None:
    """`holds` against all values of the narrow types."""
    from fluxir.ir.dtypes import DTYPES

    for n in DTYPES.values():
        for w in DTYPES.values():
            if n.is_float:
                values = np.array([1 + 2.0**-(k) for k in range(1, 53)] + [2.0**e for e in range(-1074, 1024)])
                with np.errstate(all="ignore"):
                    values = values.astype(n.numpy).astype(np.float64)
                values = values[np.isfinite(values)]
            elif n.is_bool:
                values = np.array([0.0, 1.0])
            else:
                lo, hi = n.limits
                values = np.array([lo, lo + 1, -1 if lo else 0, 0, 1, hi - 1, hi], dtype=object)
            exact = True
            for v in values:
                v = v if n.is_integer else float(v)
                if w.is_float:
                    with np.errstate(all="ignore"):
                        got: Any = float(
                            np.asarray(v if n.is_float else int(v), dtype=np.float64 if n.is_float else object)
                            .astype(np.float64)
                            .astype(w.numpy)
                        )
                    exact &= got == v
                elif n.is_float:
                    exact = False
                else:
                    exact &= w.limits[0] <= int(v) <= w.limits[1]
            assert not holds(w, n) or exact, f"{w} does not hold {n}"


# ---- symbolic sizes, engine -----------------------------------------------------------------------------------------------


def simplified(body: Any, *types: str) -> Func:
    m = Module("m", {"f": build_func("f", [tensor(t) for t in types], body, ["x", "y"])})
    return PassManager("simplify,cse,dce", verify="numeric").run(m).entry


def names(f: Func) -> list[str]:
    return [op.name for op in f.ops]


def test_symbolic_sizes() -> None:
    assert names(simplified(lambda b, x: b.reshape(b.reshape(x, shape=("B*4",)), shape=("B", 4)), "f32[B,4]")) == []
    assert names(simplified(lambda b, x: b.slice(x, start=(0, 0), limit=("B", 4)), "f32[B,4]")) == []
    assert names(
        simplified(
            lambda b, x: b.slice(b.slice(x, start=(1, 0), limit=("B+1", 4)), start=(0, 1), limit=("B", 3)), "f32[B+1,4]"
        )
    ) == ["slice"]
    assert names(simplified(lambda b, x, y: b.add(x, b.broadcast(y, shape=("B", 4))), "f32[B,4]", "f32[4]")) == ["add"]
    assert (
        names(simplified(lambda b, x: b.mul(x, b.broadcast(b.const(1.0, dtype="f32"), shape=("B", 4))), "f32[B,4]"))
        == []
    )
    assert (
        names(
            simplified(
                lambda b, x, y: b.slice(b.concat(x, y, axis=0), start=("B", 0), limit=("B+C", 4)),
                "f32[B,4]",
                "f32[C,4]",
            )
        )
        == []
    )


def test_values_that_others_use_stay() -> None:
    """Rules that move work do not repeat it."""

    def body(b: Builder, x: Value) -> Any:
        total = b.sum(x, axes=(0,), keepdims=True)
        return total, b.reshape(total, shape=(4,))

    assert names(simplified(body, "f32[3,4]")) == ["sum", "reshape"]
    assert names(simplified(lambda b, x: body(b, x)[1], "f32[3,4]")) == ["sum"]


def test_long_chains() -> None:
    def body(b: Builder, x: Value) -> Value:
        for i in range(40):
            x = b.transpose(b.neg(x), perm=(1, 0)) if i % 2 else b.mul(b.neg(x), 1.0)
        return x

    f = simplified(body, "f32[3,4]")
    assert f.op_count <= 40


def test_rules_inside_regions() -> None:
    def branch(b: Builder, x: Value) -> Value:
        return b.neg(b.neg(b.mul(x, 1.0)))

    f = simplified(
        lambda b, x, p: b.emit(
            "if", p, x, blocks=[b.block([x.type], branch), b.block([x.type], lambda k, x: k.exp(x))]
        ),
        "f32[3]",
        "bool",
    )
    assert [len(k.ops) for k in f.ops[0].blocks] == [0, 1]


def test_nested_loops_are_pruned_to_the_bottom() -> None:
    """What only an unused result of an inner loop needs goes from the outer loop too."""

    def inner(b: Builder, c: Value, d: Value, e: Value) -> Any:
        return b.add(c, e), b.exp(b.mul(d, e)), b.tanh(d)

    def outer(b: Builder, c: Value, d: Value, e: Value) -> Any:
        t = e.type.with_shape(())
        r = b.emit("scan", c, d, e, blocks=[b.block([t, t, t], inner)], carry=2)
        return r[0], r[1], b.sum(r[2], axes=(0,))

    def body(b: Builder, x: Value) -> Value:
        zero = b.const(0.0, dtype="f32")
        row = x.type.with_shape((4,))
        return b.emit("scan", zero, zero, x, blocks=[b.block([zero.type, zero.type, row], outer)], carry=2)[0]

    f = simplified(body, "f32[3,4]")
    assert not {"exp", "tanh", "sum"} & {op.name for op in f.walk()}, print_func(f)


def test_a_rule_set_without_rest_is_an_error() -> None:
    rules = RuleSet()
    rules.rule("swap_out", lambda b, x, y: b.sub(x, y), lambda b, x, y: b.add(x, b.neg(y)))
    rules.rule("swap_back", lambda b, x, y: b.add(x, b.neg(y)), lambda b, x, y: b.sub(x, y))
    f = build_func("f", [tensor("f32"), tensor("f32")], lambda b, x, y: b.sub(x, y))
    with pytest.raises(FluxError, match="does not come to rest") as e:
        rules.run(f, Counter())
    assert e.value.code == "FX0405" and "test_simplify.py:" in e.value.render()


def test_an_inexact_rule_is_found_by_the_same_test() -> None:
    rules = RuleSet()
    rules.rule("wrong", lambda b, x: b.add(x, 0), lambda b, x: x, "float")
    with pytest.raises(AssertionError, match="became"):
        for t in rules.rules["wrong"].types:
            test_rule(rules.rules["wrong"], t)


def test_a_rule_of_the_wrong_type_is_a_defect() -> None:
    rules = RuleSet()

    @rules.rewrite("neg", sample=lambda b, x: b.neg(x), types=(("f32",),))
    def wrong_type(m: Match) -> Any:
        return m.b.cast(m.operands[0], dtype="i32")

    f = build_func("f", [tensor("f32")], lambda b, x: b.neg(x))
    with pytest.raises(AssertionError, match="gave i32 for f32"):
        rules.run(f, Counter())


def test_names_are_declared_once() -> None:
    rules = RuleSet()
    rules.rule("twice", lambda b, x: b.neg(b.neg(x)), lambda b, x: x)
    with pytest.raises(ValueError, match="declared twice"):
        rules.rule("twice", lambda b, x: b.abs(b.abs(x)), lambda b, x: b.abs(x))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    p = random_program(seed, ops=14)
    after = PassManager("expand,simplify,cse,dce").run(p.module)
    assert_same(interpret(after, p.arrays), interpret(p.module, p.arrays), note=f"seed {seed}")
