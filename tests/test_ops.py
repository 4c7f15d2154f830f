"""The generated checks: every tensor-level op in the registry is held to its own declaration, from its samples.

A new op needs no test of its own: declaring it with samples puts it under all of these. What an op lacks on purpose is
listed here by name (`NO_ELEMENT`, `STATIC_ONLY`), so that a gap is a decision and not an accident.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fluxir.ops  # noqa: F401  declares the ops
from fluxir import driver
from fluxir.codegen.checks import assemble
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Block, Func, Module, Value
from fluxir.ir.interp import Interpreter, interpret
from fluxir.ir.opdef import OpDef, Sample
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.types import INDEX, MemType, TensorType, VectorType, tensor
from fluxir.ir.verify import verify_module
from fluxir.runtime.program import Program
from tests.op_harness import (
    CASES,
    NO_ELEMENT,
    OPS,
    STATIC_ONLY,
    all_samples,
    assert_close,
    at_least,
    awkward_inputs,
    awkward_program,
    element_kernel,
    inputs_of,
    owners,
    program,
    run_kernel,
    symbolic_program,
    symbolic_variants,
)

EACH_SAMPLE = pytest.mark.parametrize(("defn", "case"), CASES)
EACH_OP = pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS])


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
    module = program(defn, case)
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    assert again.digest == module.digest


# ---- 3. symbolic sizes -----------------------------------------------------------------------------------------------


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


def compile_for_cpu(module: Module) -> Program:
    target = driver.as_target("cpu")
    code = driver.generate(driver.build(module, target).stages["loops"], target)
    return Program(code.spec, code.object, code.constants)


@EACH_OP
def test_compiled_for_cpu_agrees_with_meaning(defn: OpDef) -> None:
    module, arrays = all_samples(defn)
    got = compile_for_cpu(module).call_flat(arrays)
    owner = owners(defn, defn.samples)
    for case, g, w in zip(owner, got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS if d.category in ("elementwise", "compare")])
def test_compiled_for_cpu_on_awkward_values(defn: OpDef) -> None:
    """Zeros of both signs, infinities, NaN, the ends of integer types, division by zero, shifts beyond the width."""
    module, arrays, owner = awkward_program(defn)
    got = compile_for_cpu(module).call_flat(arrays)
    for case, g, w in zip(owner, got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@EACH_OP
def test_compiled_for_cpu_with_symbolic_sizes(defn: OpDef) -> None:
    """One program for all sizes: compiled once for a symbol in each place that takes one, run at two sizes."""
    found = symbolic_program(defn)
    if found is None:
        assert defn.name in STATIC_ONLY
        return
    module, sets, owner = found
    compiled = compile_for_cpu(module)
    for arrays in sets:
        for case, g, w in zip(owner, compiled.call_flat(arrays), interpret(module, arrays), strict=True):
            assert_close(g, w, defn, case)


# ---- 7. compiled for GPUs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@EACH_OP
def test_ptx_assembles(defn: OpDef, arch: str) -> None:
    """The PTX of all samples passes our checks (in `compile_ptx`) and NVIDIA's assembler."""
    module, _ = all_samples(defn)
    target = driver.as_target(arch)
    code = driver.generate(driver.build(module, target).stages["loops"], target)
    assert f".target {arch}" in code.ptx
    kernels = assemble(code.ptx, arch)
    assert len(kernels) == code.ptx.count(".entry")


@pytest.mark.deep
@EACH_OP
def test_gpu_kernels_agree_with_meaning(defn: OpDef) -> None:
    """The GPU's kernels run thread by thread in the loop interpreter (two samples an op: it is slow)."""
    few = dataclasses.replace(defn, samples=defn.samples[:2])
    module, arrays = all_samples(few)
    loops = driver.build(module, driver.as_target("sm_80")).stages["loops"]
    want = interpret(module, arrays)
    outputs = [np.full(w.shape, 77).astype(w.dtype) for w in want]
    arena = (
        [np.zeros(int(loops.entry.attrs["arena"]), np.uint8)] if len(loops.entry.args) > len(arrays) + len(want) else []
    )
    Interpreter(loops).call(loops.entry, [*arrays, *outputs, *arena])
    owner = owners(defn, few.samples)
    for case, g, w in zip(owner, outputs, want, strict=True):
        assert_close(g, w, defn, case)
