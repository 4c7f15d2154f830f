"""What the generated checks of ops share: the list of ops and samples, inputs, one-op programs, kernels, comparison.

`all_samples(defn)` is the way in for a back end: one module with every sample of an op, and its inputs.
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
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Func, Module, Value
from fluxir.ir.interp import Interpreter
from fluxir.ir.opdef import REGISTRY, OpDef, Sample
from fluxir.ir.types import INDEX, MemType, TensorType, tensor
from fluxir.schedule.element import Elements

# Ops whose results depend on each other: they have templates of their own instead of an element rule.
NO_ELEMENT = {"scatter", "sort", "argsort", "topk", "nonzero", "cumsum", "cumprod", "cummax", "cummin"}
# Ops that take no operand with a size, or only fixed ones.
STATIC_ONLY = {"const", "dim", "iota", "random_bits"}

# Ops with regions are no types and attributes alone: they have tests of their own.
OPS = [d for d in REGISTRY.values() if d.level != "loop" and d.category != "control" and not d.regions]
CASES = [pytest.param(d, s, id=f"{d.name}-{i}-{','.join(s.types)}") for d in OPS for i, s in enumerate(d.samples)]


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


def owners(defn: OpDef, cases: Sequence[Sample]) -> list[Sample]:
    """Which sample each result of a program of `cases` belongs to."""
    return [case for case in cases for _ in program(defn, case).entry.outs]


def awkward_program(defn: OpDef) -> tuple[Module, list[Any], list[Sample]]:
    """One function that applies an elementwise op to all awkward values of each combination of types it has a sample of, the
    inputs, and the sample behind each result."""
    found = {}
    for case in defn.samples:
        dtypes = [tensor(t).dtype for t in case.types]
        found.setdefault((*dtypes, *case.attrs.items()), case)
    cases = list(found.values())
    arrays = [a for case in cases for a in awkward_inputs(case)]

    def body(b: Builder, *args: Value) -> list[Value]:
        n = len(cases[0].types)
        groups = [args[i : i + n] for i in range(0, len(args), n)]
        return [b.emit(defn.name, *xs, **case.attrs)[0] for xs, case in zip(groups, cases, strict=True)]

    types = [TensorType.of(a.dtype, a.shape) for a in arrays]
    return Module("m", {"f": build_func("f", types, body)}), arrays, cases


SYMBOLIC_PARTS = 4  # variants compiled for each op: enough to reach its forms, few enough to be quick


def spread(defn: OpDef) -> Iterator[tuple[Sample, list[TensorType], Any, dict[str, int]]]:
    """The first symbolic variant of every sample, then the second ones, and so on."""
    rows = [[(case, *v) for v in symbolic_variants(case)] for case in defn.samples]
    for column in itertools.zip_longest(*rows):
        yield from (v for v in column if v is not None)


def symbolic_program(defn: OpDef) -> tuple[Module, list[list[Any]], list[Sample]] | None:
    """One function that applies the op to a few symbolic variants of its samples, inputs at two sizes, and the sample behind
    each result; None for an op that takes no symbol."""
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
        return None

    def body(b: Builder, *args: Value) -> list[Value]:
        rest, out = list(args), []
        for _, types, attrs in parts:
            out += b.emit(defn.name, *rest[: len(types)], **attrs)
            del rest[: len(types)]
        return out

    with dims.assuming(dims.Facts(bounds)):
        func = build_func("f", [t for _, types, _ in parts for t in types], body)
    sets = []
    for more in (0, 3):
        arrays = []
        for i, (case, types, _) in enumerate(parts):
            env = {f"N{i}": bounds[f"N{i}"][0] + (0 if case.make else more)}
            rng = np.random.default_rng(i + more)
            arrays += inputs_of(case) if case.make else draw([t.substitute(env) for t in types], case, rng)
        sets.append(arrays)
    return Module("m", {"f": func}, dims.Facts(bounds)), sets, owners(defn, [case for case, _, _ in parts])
