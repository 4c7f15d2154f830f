"""The verifier against mutated IR: every kind of damage, at every op where it is possible, is found under its code.

Programs are random tensor programs and their lowered host functions and kernels. A mutation returns the damaged
module, or None where it does not apply; which ops it hits is drawn, the kinds are all of `MUTATIONS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import fluxir.ops
import fluxir.passes  # noqa: F401  declares ops and passes
from fluxir.errors import FluxError, Location
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Facts, assuming, symbol
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.types import INDEX, MemType, TensorType, VectorType, tensor
from fluxir.ir.verify import MAX_DEPTH, verify_func, verify_module
from fluxir.passes.manager import PassManager
from fluxir.schedule import lower
from fluxir.target import parse_target
from tests.programs import random_program

F32 = DTYPES["f32"]


def codes(m: Module) -> list[str]:
    with pytest.raises(FluxError) as e:
        verify_module(m)
    return [x.code for x in [e.value, *e.value.more]]


# ---- taking programs apart ----------------------------------------------------------------------------------------------


def remade(op: Op, **changes: Any) -> Op:
    """A copy of an op with the same result values and other parts; no rule is asked."""
    new = Op.__new__(Op)
    stated = {"inferred": None, "name": changes.get("defn", op.defn).name, **changes}
    for slot in Op.__slots__:
        setattr(new, slot, stated.get(slot, getattr(op, slot)))
    return new


def replaced(block: Block, old: Op, new: Sequence[Op]) -> Block:
    """The block with `old`, wherever it stands in it, replaced by other ops."""
    ops: list[Op] = []
    for op in block.ops:
        if op is old:
            ops += new
        else:
            blocks = [replaced(k, old, new) for k in op.blocks]
            ops.append(
                op if all(x is y for x, y in zip(blocks, op.blocks, strict=True)) else remade(op, blocks=tuple(blocks))
            )
    return Block(block.args, ops, block.outs)


def with_op(m: Module, f: Func, old: Op, *new: Op) -> Module:
    return m.with_func(f.with_block(replaced(f.block, old, new)))


@dataclasses.dataclass
class Site:
    """An op of a function of a module, the block around it, and a random generator."""

    module: Module
    func: Func
    block: Block
    op: Op
    rng: np.random.Generator

    def put(self, *new: Op) -> Module:
        return with_op(self.module, self.func, self.op, *new)

    def change(self, **changes: Any) -> Module:
        return self.put(remade(self.op, **changes))


def sites(m: Module, rng: np.random.Generator) -> list[Site]:
    def walk(f: Func, block: Block) -> Iterator[Site]:
        for op in block.ops:
            yield Site(m, f, block, op, rng)
            for k in op.blocks:
                yield from walk(f, k)

    return [s for f in m.funcs.values() for s in walk(f, f.block)]


def other_dtype(t: Any) -> Any:
    return dataclasses.replace(t, dtype=DTYPES["f64" if t.dtype.name != "f64" else "i16"])


def other_shape(t: Any) -> Any:
    if isinstance(t, VectorType):
        return VectorType(t.dtype, t.lanes + 1)
    return dataclasses.replace(
        t, shape=(*t.shape, 3) if isinstance(t, TensorType) and not t.shape else (*t.shape[:-1], 97)
    )


def retyped(s: Site, change: Callable[[Any], Any]) -> Module | None:
    """The op's results with types that the rule does not give; uses follow."""
    if not s.op.results or s.op.name in ("call", "alloc", "view", "reinterpret"):
        return None  # these say their own types
    if change is other_shape and isinstance(s.op.results[0].type, MemType) and not s.op.results[0].type.shape:
        return None
    results = tuple(Value(change(r.type), None, r.index, r.name) for r in s.op.results)
    return s.module.with_func(renamed(s.func, dict(zip(s.op.results, results, strict=True)), s.op, results))


def renamed(f: Func, env: dict[Value, Value], source: Op, results: tuple[Value, ...]) -> Func:
    def go(block: Block) -> Block:
        ops = [
            remade(
                op,
                operands=tuple(env.get(v, v) for v in op.operands),
                blocks=tuple(go(k) for k in op.blocks),
                results=results if op is source else op.results,
            )
            for op in block.ops
        ]
        return Block(block.args, ops, [env.get(v, v) for v in block.outs])

    return f.with_block(go(f.block))


def foreign_operand(s: Site) -> Module | None:
    if not s.op.operands:
        return None
    i = int(s.rng.integers(len(s.op.operands)))
    stranger = Value(s.op.operands[i].type)
    return s.change(operands=(*s.op.operands[:i], stranger, *s.op.operands[i + 1 :]))


def later_operand(s: Site) -> Module | None:
    """The op uses what an op after it in the block defines."""
    at = s.block.ops.index(s.op)
    after = [r for op in s.block.ops[at + 1 :] for r in op.results]
    for i, v in enumerate(s.op.operands):
        for r in after:
            if r.type == v.type:
                return s.change(operands=(*s.op.operands[:i], r, *s.op.operands[i + 1 :]))
    return None


def inner_operand(s: Site) -> Module | None:
    """The function returns a value that only a region sees."""
    inner = [r for k in s.op.blocks for o in k.ops for r in o.results]
    if not inner or not s.func.outs:
        return None
    return s.module.with_func(s.func.with_block(Block(s.func.args, s.func.ops, (inner[0], *s.func.outs[1:]))))


def dropped_operand(s: Site) -> Module | None:
    if (
        not s.op.operands
        or s.op.name in ("concat", "gather", "barrier")
        or (s.op.name == "subview" and len(s.op.operands) > 1)
    ):
        return None  # some of these are as well formed with one less
    if s.op.name == "nonzero" or (s.op.name == "reduce_lanes"):
        return None
    return s.change(operands=s.op.operands[:-1])


def extra_operand(s: Site) -> Module | None:
    if (
        s.func.level != "tensor"
        or s.op.name in ("concat", "gather", "scatter", "const", "dim", "iota", "random_bits")
        or s.op.blocks
    ):
        return None
    if not s.op.operands or s.op.defn.category not in ("elementwise", "compare"):
        return None
    return s.change(operands=(*s.op.operands, s.op.operands[0]))


def swapped_operands(s: Site) -> Module | None:
    """Operands of different dtypes change places, so that the rule no longer fits."""
    a = s.op.operands
    if len(a) < 2 or s.op.name not in ("select", "store", "load", "subview", "gather", "if", "for"):
        return None
    for i, v in enumerate(a[1:], 1):
        if v.type != a[0].type and (v.type.dtype != a[0].type.dtype or type(v.type) is not type(a[0].type)):
            b = list(a)
            b[0], b[i] = b[i], b[0]
            return s.change(operands=tuple(b))
    return None


def twice(s: Site) -> Module | None:
    return s.put(s.op, s.op) if s.op.results else None


def unknown_attr(s: Site) -> Module | None:
    return s.change(attrs=Attrs({**s.op.attrs, "colour": 3}))


def lost_attr(s: Site) -> Module | None:
    return s.change(attrs=Attrs(dict(list(s.op.attrs.items())[1:]))) if s.op.attrs else None


def wrong_kind(s: Site) -> Module | None:
    for key, spec in s.op.defn.attrs.items():
        if spec.kind not in ("any",):
            return s.change(attrs=Attrs({**s.op.attrs, key: object()}))
    return None


def none_attr(s: Site) -> Module | None:
    for key, spec in s.op.defn.attrs.items():
        if spec.default is not None and spec.kind != "any":
            return s.change(attrs=Attrs({**s.op.attrs, key: None}))
    return None


def list_attr(s: Site) -> Module | None:
    for key, spec in s.op.defn.attrs.items():
        if spec.kind in ("ints", "dims", "types") and s.op.attrs[key]:
            return s.change(attrs=Attrs({**s.op.attrs, key: list(s.op.attrs[key])}))
    return None


def unregistered(s: Site) -> Module | None:
    return s.change(defn=dataclasses.replace(s.op.defn))


def wrong_level(s: Site) -> Module | None:
    name = "splat" if s.func.level == "tensor" else "scan"
    return s.put(remade(s.op, defn=REGISTRY[name], attrs=Attrs(lanes=4)), s.op)


def lost_region(s: Site) -> Module | None:
    return s.change(blocks=s.op.blocks[:-1]) if s.op.blocks else None


def extra_region(s: Site) -> Module | None:
    return s.change(blocks=(*s.op.blocks, Block((), (), ())))


def lost_region_argument(s: Site) -> Module | None:
    if not s.op.blocks or not s.op.blocks[0].args:
        return None
    k = s.op.blocks[0]
    return s.change(blocks=(Block(k.args[:-1], k.ops, k.outs), *s.op.blocks[1:]))


def extra_region_argument(s: Site) -> Module | None:
    if not s.op.blocks:
        return None
    k = s.op.blocks[0]
    return s.change(blocks=(Block((*k.args, Value(INDEX)), k.ops, k.outs), *s.op.blocks[1:]))


def lost_yield(s: Site) -> Module | None:
    if not s.op.blocks or not s.op.blocks[0].outs:
        return None
    k = s.op.blocks[0]
    return s.change(blocks=(Block(k.args, k.ops, k.outs[:-1]), *s.op.blocks[1:]))


def captured(s: Site) -> Module | None:
    """A closed region yields a value of the block around it."""
    if s.func.level != "tensor" or not s.op.blocks or not s.op.blocks[0].outs:
        return None
    k = s.op.blocks[0]
    for v in s.op.operands:
        if v.type == k.outs[0].type:
            return s.change(blocks=(Block(k.args, k.ops, (v, *k.outs[1:])), *s.op.blocks[1:]))
    return None


def lost_callee(s: Site) -> Module | None:
    return s.change(attrs=Attrs({**s.op.attrs, "callee": "nowhere"})) if "callee" in s.op.attrs else None


def wrong_callee_arguments(s: Site) -> Module | None:
    if "callee" not in s.op.attrs or len(s.op.operands) < 2 or s.op.operands[0].type == s.op.operands[-1].type:
        return None
    return s.change(operands=s.op.operands[::-1])


def callee_of_wrong_level(s: Site) -> Module | None:
    return s.change(attrs=Attrs({**s.op.attrs, "callee": s.module.entry.name})) if s.op.name == "launch" else None


def callee_with_other_types(s: Site) -> Module | None:
    """The kernel changes under a launch: an argument of another element type."""
    if s.op.name != "launch":
        return None
    k = s.module.funcs[s.op.attrs["callee"]]
    if not k.args:
        return None
    extra = Value(MemType(F32, (3,)))
    return s.module.with_func(k.with_block(Block((*k.args, extra), k.ops, k.outs)))


def bad_launch_outputs(s: Site) -> Module | None:
    return s.change(attrs=Attrs({**s.op.attrs, "outputs": 99})) if s.op.name == "launch" else None


def bad_launch_inplace(s: Site) -> Module | None:
    return s.change(attrs=Attrs({**s.op.attrs, "inplace": ((0, 99),)})) if s.op.name == "launch" else None


RULES = {"FX0108", "FX0105"} | {
    f"FX02{n:02d}" for n in range(30)
}  # the type rule's own code, whichever check comes first
MUTATIONS: dict[str, tuple[Callable[[Site], Module | None], set[str]]] = {
    "other dtype": (lambda s: retyped(s, other_dtype), {"FX0105"}),
    "other shape": (lambda s: retyped(s, other_shape), {"FX0105"}),
    "foreign operand": (foreign_operand, {"FX0103"}),
    "later operand": (later_operand, {"FX0103"}),
    "inner value returned": (inner_operand, {"FX0103"}),
    "dropped operand": (dropped_operand, RULES),
    "extra operand": (extra_operand, RULES),
    "swapped operands": (swapped_operands, RULES),
    "defined twice": (twice, {"FX0104"}),
    "unknown attribute": (unknown_attr, {"FX0106"}),
    "lost attribute": (lost_attr, {"FX0106"}),
    "attribute of a wrong kind": (wrong_kind, {"FX0106"}),
    "attribute none": (none_attr, {"FX0106"}),
    "attribute not in normal form": (list_attr, {"FX0106"}),
    "unregistered op": (unregistered, {"FX0102"}),
    "wrong level": (wrong_level, {"FX0106", "FX0108"}),
    "lost region": (lost_region, {"FX0108"}),
    "extra region": (extra_region, {"FX0108"}),
    "lost region argument": (lost_region_argument, RULES),
    "extra region argument": (extra_region_argument, RULES),
    "lost yield": (lost_yield, RULES),
    "captured value": (captured, {"FX0103"}),
    "lost callee": (lost_callee, {"FX0107"}),
    "arguments of a callee": (wrong_callee_arguments, {"FX0108"}),
    "launch of a host function": (callee_of_wrong_level, {"FX0108"}),
    "changed kernel": (callee_with_other_types, {"FX0108"}),
    "outputs of a launch": (bad_launch_outputs, {"FX0108"}),
    "inplace of a launch": (bad_launch_inplace, {"FX0106"}),
}


@cache
def programs() -> list[Module]:
    """Tensor programs with control flow, and lowered ones."""
    out = [random_program(seed, ops=10).module for seed in range(12)]
    target = parse_target("cpu:x86-64-v3")  # a named one: how many launches there are depends on its vectors
    for seed in range(6):
        m = PassManager("expand,cse,dce,fuse,dce").run(random_program(seed, ops=8).module)
        with assuming(m.facts):
            out.append(lower(m, target))
    out.append(calls())
    for m in out:
        verify_module(m)
    return out


def calls() -> Module:
    n, k = symbol("N"), symbol("K")
    inner = build_func("inner", [TensorType(F32, (n, 2)), TensorType(F32)], lambda b, x, y: b.mul(x, y))

    def body(b: Builder, x: Value, y: Value) -> Value:
        t = TensorType(F32, (k + 1, 2))
        return b.emit("call", x, y, callee="inner", results=(t,), dims=(("N", k + 1),))[0]

    outer = build_func("outer", [TensorType(F32, (k + 1, 2)), TensorType(F32)], body)
    return Module("calls", {"outer": outer, "inner": inner})


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_every_mutation_is_found(kind: str) -> None:
    mutate, expected = MUTATIONS[kind]
    rng = np.random.default_rng(3)
    tried = 0
    for m in programs():
        places = sites(m, rng)
        for i in rng.permutation(len(places))[:60]:
            s = places[int(i)]
            damaged = mutate(s)
            if damaged is None:
                continue
            tried += 1
            with pytest.raises(FluxError) as e:
                verify_module(damaged)
                pytest.fail(f"{kind} of {s.op!r} in @{s.func.name} was not found")
            found = {x.code for x in [e.value, *e.value.more]}
            assert found & expected, f"{kind} of {s.op!r}: {found}, expected {expected}"
            assert f"@{s.func.name}" in e.value.render() or damaged.funcs.keys() - {s.func.name}
            if tried >= 150:
                return
    assert tried >= 3, f"{kind} applies nowhere"


# ---- one by one -----------------------------------------------------------------------------------------------------------

CALL = ["f32[K+1,2]", "f32"]


def call_module(
    given: list[str], dims: Any = (), results: str = "f32[K+1,2]", takes: tuple[str, ...] = ("f32[N,2]", "f32")
) -> Module:
    inner = build_func("inner", [tensor(t) for t in takes], lambda b, *xs: b.neg(xs[0]))
    outer = build_func("outer", [tensor(t) for t in given],
                       lambda b, *xs: b.emit("call", *xs, callee="inner", results=(tensor(results),), dims=dims))  # fmt: skip
    return Module("m", {"outer": outer, "inner": inner})


def test_calls_are_checked_under_their_sizes() -> None:
    k = symbol("K")
    verify_module(call_module(CALL, (("N", k + 1),)))
    assert codes(call_module(CALL)) == ["FX0108"]  # a size that is not named is the caller's N
    assert codes(call_module(CALL, (("N", k),))) == ["FX0108"]
    assert codes(call_module(CALL[:1])) == ["FX0108"]
    assert codes(call_module(["f32[K+1,3]", "f32"])) == ["FX0108"]
    assert codes(call_module(["f16[K+1,2]", "f32"])) == ["FX0108"]
    assert codes(call_module(["f32[2]", "f32"])) == ["FX0108"]
    assert codes(call_module(CALL, results="f32[K,2]")) == ["FX0108"]
    assert codes(call_module(CALL, dims=("N",))) == ["FX0106"]
    assert codes(call_module(["f32[K,2]", "f32[K+1,2]"], takes=("f32[N,2]", "f32[N,2]"), results="f32[K,2]")) == [
        "FX0108"
    ]
    with pytest.raises(FluxError) as e:
        verify_module(call_module(["f32[K+1,3]", "f32"], dims=(("N", k + 1),)))
    message = str(e.value)
    assert "argument 0 of @inner is f32[K+1,2] (f32[N,2] there), given f32[K+1,3]" in message
    with pytest.raises(FluxError) as e:
        verify_module(call_module(CALL))
    assert e.value.help == 'a size that is not named is the caller\'s: write dims=(("N", <K+1>),)'


def test_types_that_facts_make_equal_are_equal() -> None:
    f = build_func("f", [tensor("f32[M,2]"), tensor("f32[N*2,2]")], lambda b, x, y: b.neg(x))
    op = Op(REGISTRY["add"], f.args, Attrs(), (), None, [tensor("f32[M,2]")])
    g = f.with_block(Block(f.args, [op], op.results))
    verify_module(Module("m", {"f": g}, Facts(equations=((symbol("M"), symbol("N") * 2),))))
    assert codes(Module("m", {"f": g})) == ["FX0202"]


def test_functions_as_a_whole() -> None:
    f = build_func("f", [tensor("f32[2]")], lambda b, x: (b.neg(x), b.abs(x)))
    assert codes(Module("m", {"g": f})) == ["FX0112"]
    assert codes(Module("m", {"f": dataclasses.replace(f, level="chip")})) == ["FX0108"]
    assert codes(Module("m", {"f": dataclasses.replace(f, result_names=("a",))})) == ["FX0111"]
    assert codes(Module("m", {"f": dataclasses.replace(f, result_names=("a", "a"))})) == ["FX0111"]
    assert "FX0111" in codes(Module("m", {"f": dataclasses.replace(f, level="kernel")}))
    verify_module(Module("m", {"f": dataclasses.replace(f, result_names=("a", ""))}))
    k = build_func("k", [MemType(F32, (2,))], lambda b, x: None, level="kernel")
    assert codes(Module("m", {"k": dataclasses.replace(k, level="tensor")})) == ["FX0108"]


def test_regions_nested_without_end() -> None:
    def nest(b: Builder, depth: int) -> None:
        if depth:
            b.emit("if", p, blocks=[b.block([], lambda ib: nest(ib, depth - 1)), b.block([], lambda ib: None)])

    p = Value(tensor("bool"), None, 0, "p")
    b = Builder()
    nest(b, MAX_DEPTH + 5)
    f = Func("f", Block([p], b.ops, ()), "kernel")
    with pytest.raises(FluxError, match="FX0109"):
        verify_func(f)


def test_the_message_shows_op_place_and_path() -> None:
    place = Location("model.py", 12, 5)
    f = build_func("f", [tensor("f32[2,3]")], lambda b, x: b.emit("neg", x, loc=place))
    op = f.ops[0]
    bad = remade(op, results=(Value(tensor("f32[2,4]")),))
    m = Module("m", {"f": f.with_block(Block(f.args, [bad], bad.results))})
    with pytest.raises(FluxError) as e:
        verify_module(m)
    text = str(e.value)
    for words in (
        "error[FX0105]",
        "model.py:12:5",
        "@f/0:neg",
        "the type rule gives f32[2,3], the program says f32[2,4]",
        "neg(_: f32[2,3])",
    ):
        assert words in text


def test_several_mistakes_in_one_go() -> None:
    f = build_func("f", [tensor("f32[2]")], lambda b, x: b.exp(b.neg(x)))
    bad = [remade(f.ops[0], attrs=Attrs(colour=1)), remade(f.ops[1], operands=(Value(tensor("f32[2]")),))]
    assert codes(Module("m", {"f": f.with_block(Block(f.args, bad, f.outs))})) == ["FX0106", "FX0103"]


def test_open_regions_do_not_leak() -> None:
    """A kernel's loop body sees what is around it; what it defines ends with it."""

    def body(b: Builder, x: Value) -> None:
        def inner(ib: Builder, i: Value) -> None:
            leaked.append(ib.load(x, i))

        b.emit("for", b.index(0), b.index(2), b.index(1), blocks=[b.block([INDEX], inner)])
        b.store(x, leaked[0], b.index(0))

    leaked: list[Value] = []
    k = build_func("k", [MemType(F32, (2,))], body, level="kernel")
    assert codes(Module("m", {"k": k})) == ["FX0103"]
