"""The generated checks: every tensor-level op in the registry is held to its own declaration, from its samples.

A new op needs no test of its own: declaring it with samples puts it under all of these. What an op lacks on purpose is
listed here by name (`NO_ELEMENT`, `STATIC_ONLY`), so that a gap is a decision and not an accident.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import fluxir.ops  # noqa: F401  declares the ops
from fluxir import driver
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Block, Func, Module, Value
from fluxir.ir.interp import Interpreter, interpret
from fluxir.ir.opdef import REGISTRY, OpDef, Sample
from fluxir.ir.printer import print_module
from fluxir.ir.types import INDEX, MemType, TensorType, VectorType, tensor
from fluxir.ir.verify import verify_module
from fluxir.runtime.program import Program
from fluxir.schedule.element import Elements

# Ops whose results depend on each other: they have templates of their own instead of an element rule.
NO_ELEMENT = {"scatter", "sort", "argsort", "topk", "nonzero", "cumsum", "cumprod", "cummax", "cummin"}
# Ops that take no operand with a size, or only fixed ones.
STATIC_ONLY = {"const", "dim", "iota", "random_bits"}

OPS = [d for d in REGISTRY.values() if d.level != "loop" and d.category != "control"]
CASES = [pytest.param(d, s, id=f"{d.name}-{i}-{','.join(s.types)}") for d in OPS for i, s in enumerate(d.samples)]
EACH_SAMPLE = pytest.mark.parametrize(("defn", "case"), CASES)
EACH_OP = pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS])

TOLERANCE = {"f64": 1e-11, "f32": 4e-6, "f16": 4e-3, "bf16": 3e-2}


def inputs_of(case: Sample, seed: int = 0) -> list[Any]:
    """Arrays for a sample: from its `make`, or uniform in its range (bools at even odds)."""
    rng = np.random.default_rng(zlib.crc32(repr(case.types).encode()) + seed)
    if case.make is not None:
        return [np.asarray(a) for a in case.make(rng)]
    return draw([tensor(t) for t in case.types], case, rng)


def draw(types: Sequence[TensorType], case: Sample, rng: Any) -> list[Any]:
    """Random arrays of the given types, in the sample's range."""
    out = []
    for t in types:
        if t.dtype.is_bool:
            out.append(rng.random(t.shape) < 0.5)
        elif t.dtype.is_integer:
            lo, hi = t.dtype.limits
            low, high = max(lo, int(case.low)), min(hi, int(case.high))
            out.append(rng.integers(low, high, t.shape, endpoint=True).astype(t.dtype.numpy))
        else:
            out.append(np.asarray(rng.uniform(case.low, case.high, t.shape)).astype(t.dtype.numpy))
    return [np.asarray(a) for a in out]


def program(
    defn: OpDef,
    case: Sample,
    types: Sequence[TensorType] | None = None,
    attrs: Any = None,
    facts: dims.Facts | None = None,
) -> Module:
    """The module that is just this op."""
    types = types or [tensor(t) for t in case.types]
    given = case.attrs if attrs is None else attrs
    f = build_func("f", types, lambda b, *xs: b.emit(defn.name, *xs, **given), [f"x{i}" for i in range(len(types))])
    return Module("m", {"f": f}, facts or dims.Facts())


def assert_close(got: Any, want: Any, defn: OpDef, case: Sample) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    name = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}[want.dtype.name]
    rtol = case.rtol or TOLERANCE[name]
    scale = np.max(np.abs(want.astype(np.float64)), initial=1.0, where=np.isfinite(want))
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol * min(scale, 100.0) * 0.5
    )


# ---- declarations ----------------------------------------------------------------------------------------------------


@EACH_OP
def test_is_declared_in_full(defn: OpDef) -> None:
    """Doc, samples, a meaning, and a way to be compiled: none of them may be forgotten."""
    assert defn.doc.strip() and defn.doc.rstrip().endswith((".", ")")), f"{defn.name} has no doc sentence"
    assert defn.samples, f"{defn.name} has no samples"
    assert defn.ref is not None or defn.eval is not None
    if defn.category == "composite":
        assert defn.expand is not None
    else:
        assert (defn.element is not None) != (defn.name in NO_ELEMENT)
    if defn.category in ("elementwise", "compare"):
        assert defn.llvm is not None or defn.approx is not None


@EACH_OP
def test_samples_cover_types_and_edges(defn: OpDef) -> None:
    """Each op is tried on an empty tensor; the elementwise ones on scalars and on every type class they take."""
    types = [tensor(t) for s in defn.samples for t in s.types]
    if not types or defn.name in STATIC_ONLY:
        return
    if defn.category in ("elementwise", "compare"):
        assert any(not t.shape for t in types), f"{defn.name}: no sample of rank 0"
        sampled = {t.dtype.kind for t in types}
        for probe in ("f32", "i32", "u32", "bool"):
            count = len(defn.samples[0].types)
            try:
                program(defn, defn.samples[0], [TensorType.of(probe)] * count)
            except FluxError:
                continue
            assert tensor(probe).dtype.kind in sampled, f"{defn.name} takes {probe} and has no sample of its kind"
    results = [v.type for s in defn.samples for v in program(defn, s).entry.outs]
    assert any(0 in t.shape for t in [*types, *results]), f"{defn.name}: no sample with a zero size"


# ---- 1. the type rule against the meaning ---------------------------------------------------------------------------


@EACH_SAMPLE
def test_type_rule_agrees_with_meaning(defn: OpDef, case: Sample) -> None:
    module = program(defn, case)
    verify_module(module)
    op = module.entry.ops[-1]
    arrays = inputs_of(case)
    assert [str(TensorType.of(a.dtype, a.shape)) for a in arrays] == list(case.types), "make() gives other types"
    if defn.ref is None:
        results = interpret(module, arrays)
    else:
        with np.errstate(all="ignore"):
            r = defn.ref(op.attrs, *arrays)  # not through the interpreter, which would cast
        results = list(r) if isinstance(r, (tuple, list)) else [r]
    assert [TensorType.of(np.asarray(r).dtype, np.shape(r)) for r in results] == [v.type for v in op.results]


# ---- 2. text ---------------------------------------------------------------------------------------------------------


@EACH_SAMPLE
def test_text_round_trip(defn: OpDef, case: Sample) -> None:
    from fluxir.ir.parser import parse_module

    module = program(defn, case)
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    assert again.digest == module.digest


# ---- 3. symbolic sizes -----------------------------------------------------------------------------------------------


def symbolic_variants(case: Sample) -> Iterator[tuple[list[TensorType], dict[str, Any], dict[str, int]]]:
    """The sample with one size made a symbol: wherever it occurs (in types, and in size attributes too), or on one axis."""
    types = [tensor(t) for t in case.types]
    s = dims.symbol("N")
    for n in sorted({d for t in types for d in t.shape if isinstance(d, int) and d > 1}):
        env = {"N": n}
        changed = [t.with_shape(s if d == n else d for d in t.shape) for t in types]
        yield changed, dict(case.attrs), env
        sizes = {k: v for k, v in case.attrs.items() if k in ("shape", "sizes", "limit") and n in v}
        if sizes:
            yield changed, {**case.attrs, **{k: tuple(s if d == n else d for d in v) for k, v in sizes.items()}}, env
    for k, t in enumerate(types):
        for axis, n in enumerate(t.shape):
            if n:
                one = t.with_shape(s if i == axis else d for i, d in enumerate(t.shape))
                yield [*types[:k], one, *types[k + 1 :]], dict(case.attrs), {"N": n}


def at_least(env: dict[str, int]) -> dims.Facts:
    return dims.Facts({name: (n, dims.INF) for name, n in env.items()})


@EACH_OP
def test_symbolic_sizes_substitute_to_concrete(defn: OpDef) -> None:
    """Where the op accepts a symbol, its result type with the number put in is the type for the number; and the meaning
    runs at that size. Some sample of every op must accept one."""
    accepted = 0
    for case in defn.samples:
        want = [v.type for v in program(defn, case).entry.outs]
        for types, attrs, env in symbolic_variants(case):
            with dims.assuming(at_least(env)):
                try:
                    module = program(defn, case, types, attrs, at_least(env))
                except FluxError:
                    continue  # this size must be known (a window, a shape attribute); the count below bounds that
                verify_module(module)
                got = [v.type.substitute(env) for v in module.entry.outs]
            assert got == want, f"{case}: {got} is not {want}"
            results = interpret(module, inputs_of(case))
            assert [np.shape(r) for r in results] == [t.shape for t in want]
            accepted += 1
    assert accepted or defn.name in STATIC_ONLY, f"{defn.name} accepts no symbolic size in any sample"


# ---- 4. element rules against meanings -------------------------------------------------------------------------------


def element_kernel(func: Func, facts: dims.Facts | None = None) -> Module:
    """The kernel that computes every result of `func`, element by element: the generic pointwise template."""
    arguments = [MemType(v.type.dtype, v.type.shape) for v in func.args]
    outputs = [MemType(v.type.dtype, v.type.shape) for v in func.outs]

    def body(b: Builder, *memories: Value) -> None:
        known = dict(zip(func.args, memories, strict=False))
        for op in func.walk():
            if op.name == "const" and op.attrs.value.size > 1:
                # a template passes arrays as memories; here they are written into a local one
                known[op.result] = constant_memory(b, op.attrs.value)
        for v, memory in zip(func.outs, memories[len(func.args) :], strict=True):
            loops(b, known, v, memory, ())

    def loops(b: Builder, known: dict[Value, Value], v: Value, memory: Value, index: tuple[Value, ...]) -> None:
        if len(index) == len(v.type.shape):
            b.store(memory, Elements(b, known).at(v, index), *index)
            return
        size = b.index(v.type.shape[len(index)])

        def step(inner: Builder, i: Value) -> None:
            loops(inner, known, v, memory, (*index, i))

        b.emit("for", b.index(0), size, b.index(1), blocks=[b.block([INDEX], step)])

    kernel = build_func("k", [*arguments, *outputs], body, level="kernel")
    return Module("k", {"k": kernel}, facts or dims.Facts())


def constant_memory(b: Builder, array: Any) -> Value:
    t = MemType(tensor_dtype(array), tuple(array.shape), "local")
    memory: Value = b.alloc(type=t)
    for index in np.ndindex(*array.shape):
        b.store(memory, b.const(array[index], dtype=t.dtype), *[b.index(i) for i in index])
    return memory


def tensor_dtype(array: Any) -> Any:
    return TensorType.of(array.dtype).dtype


def run_kernel(
    module: Module, arrays: Sequence[Any], results: Sequence[TensorType], env: dict[str, int] | None = None
) -> list[Any]:
    out = [np.zeros(t.shape, t.dtype.numpy) for t in results]
    with np.errstate(all="ignore"):
        Interpreter(module, env or {}).call("k", [*arrays, *out])
    return out


@EACH_SAMPLE
def test_element_rule_agrees_with_meaning(defn: OpDef, case: Sample) -> None:
    if defn.element is None:
        assert defn.name in NO_ELEMENT or defn.expand is not None
        return
    module = program(defn, case)
    kernel = element_kernel(module.entry)
    verify_module(kernel)
    arrays = inputs_of(case)
    want = interpret(module, arrays)
    for g, w in zip(run_kernel(kernel, arrays, [v.type for v in module.entry.outs]), want, strict=True):
        assert_close(g, w, defn, case)


# ---- 4b. recipes against meanings ------------------------------------------------------------------------------------

SIMPLE = [d for d in OPS if d.approx is not None]


def awkward_values(t: TensorType) -> Any:
    if t.dtype.is_float:
        values: list[Any] = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-3, 7.25, -100.0, math.inf, -math.inf, math.nan]
    elif t.dtype.is_integer:
        lo, hi = t.dtype.limits
        values = [v for v in (0, 1, 2, 3, 7, -1, -2, -7, 31, lo, hi) if lo <= v <= hi]
    else:
        values = [False, True]
    return np.array(values).astype(t.dtype.numpy)


def awkward_inputs(case: Sample) -> list[Any]:
    """All combinations of the awkward values of the operands' types."""
    columns = [awkward_values(tensor(t)) for t in case.types]
    picks = np.meshgrid(*[np.arange(len(c)) for c in columns], indexing="ij")
    return [c[p.reshape(-1)] for c, p in zip(columns, picks, strict=True)]


def recipe_kernel(defn: OpDef, dtypes: Sequence[Any], result: Any, lanes: int) -> Module:
    n = dims.symbol("N")

    def body(b: Builder, *memories: Value) -> None:
        def step(inner: Builder, i: Value) -> None:
            xs = [inner.load(m, i, lanes=lanes) for m in memories[:-1]]
            assert defn.approx is not None
            inner.store(memories[-1], defn.approx(inner, *xs), i)

        b.emit("for", b.index(0), b.index(n), b.index(lanes or 1), blocks=[b.block([INDEX], step)])

    types = [MemType(d, (n,)) for d in (*dtypes, result)]
    return Module("k", {"k": build_func("k", types, body, level="kernel")})


@pytest.mark.parametrize("lanes", [0, 4], ids=["scalar", "vector"])
@pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in SIMPLE])
def test_recipe_agrees_with_meaning(defn: OpDef, lanes: int) -> None:
    """The spelling in simpler ops, on scalars and vectors, on ordinary and awkward values, in every type of the samples."""
    for text in sorted({s.types[0].split("[")[0] for s in defn.samples}):
        dtype = tensor(text).dtype
        llvm = defn.llvm if isinstance(defn.llvm, dict) else {}
        if dtype.kind in llvm:
            continue  # spelled by LLVM
        cases = [s for s in defn.samples if s.types[0].split("[")[0] == text]
        columns = [awkward_inputs(cases[0])]
        for s in cases:
            got = inputs_of(s)
            columns.append([np.asarray(a).reshape(-1) for a in np.broadcast_arrays(*got)])
        arrays = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        extra = -len(arrays[0]) % 4
        arrays = [np.concatenate([a, np.ones(extra, a.dtype)]) for a in arrays]
        types = [TensorType.of(a.dtype, a.shape) for a in arrays]
        module = program(defn, cases[0], types)
        (want,) = interpret(module, arrays)
        kernel = recipe_kernel(defn, [t.dtype for t in types], module.entry.outs[0].type.dtype, lanes)
        verify_module(kernel)
        (got,) = run_kernel(kernel, arrays, [module.entry.outs[0].type])
        assert_close(got, want, defn, cases[0])


# ---- 5. composites ---------------------------------------------------------------------------------------------------


def expanded(func: Func) -> Func:
    """`func` (one composite) with the composite replaced by its expansion, composites inside it too."""

    def body(b: Builder, *args: Value) -> Any:
        env: dict[Value, Value] = dict(zip(func.args, args, strict=True))
        emit_expanded(b, func.block, env)
        return [env[v] for v in func.outs]

    return build_func(func.name, [a.type for a in func.args], body, [a.name for a in func.args])


def emit_expanded(b: Builder, block: Block, env: dict[Value, Value]) -> None:
    for op in block.ops:
        operands = [env[v] for v in op.operands]
        if op.defn.expand is None:
            new: Sequence[Value] = b.clone(op, operands)
        else:
            inner = Builder()
            copy = inner.clone(op, operands)[0].owner
            part = Builder()
            r = op.defn.expand(part, copy)
            outs = (r,) if isinstance(r, Value) else tuple(r)
            again = dict(zip(operands, operands, strict=True))
            emit_expanded(b, Block((), part.ops, outs), again)
            new = [again[v] for v in outs]
        env.update(zip(op.results, new, strict=True))


COMPOSITES = [c for c in CASES if c.values[0].expand is not None]


@pytest.mark.parametrize(("defn", "case"), COMPOSITES)
def test_expansion_agrees_with_meaning(defn: OpDef, case: Sample) -> None:
    module = program(defn, case)
    simple = Module("m", {"f": expanded(module.entry)}, module.facts)
    verify_module(simple)
    assert all(op.defn.expand is None for op in simple.entry.walk())
    assert [v.type for v in simple.entry.outs] == [v.type for v in module.entry.outs]
    arrays = inputs_of(case)
    for g, w in zip(interpret(simple, arrays), interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS if d.expand is not None])
def test_expansion_with_symbolic_sizes(defn: OpDef) -> None:
    """An expansion may not need a size to be known where the composite does not."""
    tried = 0
    for case in defn.samples:
        for types, attrs, env in symbolic_variants(case):
            with dims.assuming(at_least(env)):
                try:
                    module = program(defn, case, types, attrs, at_least(env))
                except FluxError:
                    continue
                simple = Module("m", {"f": expanded(module.entry)}, module.facts)
                verify_module(simple)
            arrays = inputs_of(case)
            for g, w in zip(interpret(simple, arrays), interpret(module, arrays), strict=True):
                assert_close(g, w, defn, case)
            tried += 1
    assert tried


# ---- what samples cannot show ----------------------------------------------------------------------------------------


def test_vectors_take_every_elementwise_op() -> None:
    for defn in OPS:
        if defn.category not in ("elementwise", "compare") or defn.level != "both":
            continue
        for case in defn.samples:
            types = [tensor(t) for t in case.types]
            func = build_func(
                "v",
                [VectorType(t.dtype, 4) for t in types],
                lambda b, *xs, d=defn, c=case: b.emit(d.name, *xs, **c.attrs),
                level="kernel",
            )
            scalar = program(defn, case, [TensorType(t.dtype) for t in types], case.attrs).entry.outs[0].type
            assert func.outs[0].type == VectorType(scalar.dtype, 4)


# ---- 6. compiled for the CPU -----------------------------------------------------------------------------------------


def all_samples(defn: OpDef) -> tuple[Module, list[Any]]:
    """One function that applies the op to each of its samples, and the inputs for all of them."""
    cases = defn.samples
    types = [[tensor(t) for t in case.types] for case in cases]

    def body(b: Builder, *args: Value) -> list[Value]:
        rest, out = list(args), []
        for case, ts in zip(cases, types, strict=True):
            out += b.emit(defn.name, *rest[: len(ts)], **case.attrs)
            del rest[: len(ts)]
        return out

    flat = [t for ts in types for t in ts]
    func = build_func("f", flat, body, [f"x{i}" for i in range(len(flat))])
    return Module("m", {"f": func}), [a for case in cases for a in inputs_of(case)]


def compile_for_cpu(module: Module) -> Program:
    target = driver.as_target("cpu")
    code = driver.generate(driver.build(module, target).stages["loops"], target)
    return Program(code.spec, code.object, code.constants)


@EACH_OP
def test_compiled_for_cpu_agrees_with_meaning(defn: OpDef) -> None:
    module, arrays = all_samples(defn)
    got = compile_for_cpu(module).call_flat(arrays)
    owner = [case for case in defn.samples for _ in program(defn, case).entry.outs]
    for case, g, w in zip(owner, got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS if d.category in ("elementwise", "compare")])
def test_compiled_for_cpu_on_awkward_values(defn: OpDef) -> None:
    """Zeros of both signs, infinities, NaN, the ends of integer types, division by zero, shifts beyond the width."""
    cases = {}
    for case in defn.samples:
        dtypes = [tensor(t).dtype for t in case.types]
        cases.setdefault((*dtypes, *case.attrs.items()), case)
    names, arrays, types = [], [], []
    for case in cases.values():
        columns = awkward_inputs(case)
        names.append(case)
        arrays += columns
        types += [TensorType.of(a.dtype, a.shape) for a in columns]

    def body(b: Builder, *args: Value) -> list[Value]:
        n = len(names[0].types)
        groups = [args[i : i + n] for i in range(0, len(args), n)]
        return [b.emit(defn.name, *xs, **case.attrs)[0] for xs, case in zip(groups, names, strict=True)]

    module = Module("m", {"f": build_func("f", types, body)})
    got = compile_for_cpu(module).call_flat(arrays)
    for case, g, w in zip(names, got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


SYMBOLIC_PARTS = 4  # variants compiled for each op: enough to reach its forms, few enough to be quick


def spread(defn: OpDef) -> Iterator[tuple[Sample, list[TensorType], Any, dict[str, int]]]:
    """The first symbolic variant of every sample, then the second ones, and so on."""
    rows = [[(case, *v) for v in symbolic_variants(case)] for case in defn.samples]
    for column in itertools.zip_longest(*rows):
        yield from (v for v in column if v is not None)


@EACH_OP
def test_compiled_for_cpu_with_symbolic_sizes(defn: OpDef) -> None:
    """One program for all sizes: compiled once for a symbol in each place that takes one, run at two sizes."""
    parts: list[tuple[Sample, list[TensorType], Any]] = []
    bounds: dict[str, tuple[int, int]] = {}
    for case, types, attrs, env in spread(defn):
        if len(parts) < SYMBOLIC_PARTS:
            name = f"N{len(parts)}"
            rename = {"N": dims.symbol(name)}
            types = [t.substitute(rename) for t in types]
            attrs = {
                k: tuple(dims.substitute(d, rename) for d in v) if isinstance(v, tuple) else v for k, v in attrs.items()
            }
            facts = dims.Facts({name: (env["N"], dims.INF)})
            try:
                with dims.assuming(facts):
                    program(defn, case, types, attrs, facts)
            except FluxError:
                continue
            parts.append((case, types, attrs))
            bounds[name] = (env["N"], dims.INF)
    if not parts:
        assert defn.name in STATIC_ONLY
        return

    def body(b: Builder, *args: Value) -> list[Value]:
        rest, out = list(args), []
        for _, types, attrs in parts:
            out += b.emit(defn.name, *rest[: len(types)], **attrs)
            del rest[: len(types)]
        return out

    with dims.assuming(dims.Facts(bounds)):
        func = build_func("f", [t for _, types, _ in parts for t in types], body)
    module = Module("m", {"f": func}, dims.Facts(bounds))
    compiled = compile_for_cpu(module)
    owner = [case for case, types, attrs in parts for _ in program(defn, case).entry.outs]
    for more in (0, 3):
        arrays = []
        for i, (case, types, _) in enumerate(parts):
            env = {f"N{i}": bounds[f"N{i}"][0] + (0 if case.make else more)}
            rng = np.random.default_rng(i + more)
            arrays += inputs_of(case) if case.make else draw([t.substitute(env) for t in types], case, rng)
        for case, g, w in zip(owner, compiled.call_flat(arrays), interpret(module, arrays), strict=True):
            assert_close(g, w, defn, case)
