"""x86 code against the loop interpreter: arithmetic on every type and edge, memory, control flow, host functions.

Each program is a kernel with a host function that launches it, compiled for the native target and for x86-64-v1, where
FMA, F16C and SSE4.1 are missing and emulated.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fluxir.ops  # noqa: F401  declares the ops
from fluxir.codegen import backend, checks
from fluxir.codegen.abi import MAX_DEPTH
from fluxir.codegen.emit import Dialect, Emitter, Unit
from fluxir.codegen.legalize import legalize
from fluxir.codegen.x86 import CompiledCode, compile_cpu
from fluxir.errors import FluxError
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Attrs, Block, Func, Module, Value
from fluxir.ir.dims import INF, Facts, ceildiv, maximum, symbol
from fluxir.ir.dtypes import DTYPES, dtype_of
from fluxir.ir.interp import Interpreter
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.types import BOOL, INDEX, MemType, TensorType, parse_type
from fluxir.ir.verify import verify_module
from fluxir.runtime.program import Program
from fluxir.target import parse_target

TARGETS = ("cpu", "cpu:x86-64-v1")


def mems(*texts: str) -> list[MemType]:
    out = [parse_type("&" + t) for t in texts]
    assert all(isinstance(t, MemType) for t in out)
    return out  # type: ignore[return-value]


def module(
    body: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    facts: Facts | None = None,
    inplace: Any = (),
) -> Module:
    """A kernel over memories (inputs, then outputs), and a host function that launches it."""
    types = mems(*inputs, *outputs)
    names = [f"x{i}" for i in range(len(inputs))]
    kernel = build_func("kernel", types, body, names, level="kernel")

    def launch(b: Builder, *args: Value) -> None:
        b.emit("launch", *args, callee="kernel", outputs=len(outputs), inplace=inplace)

    host = build_func("main", types, launch, names, level="host", inputs=len(inputs))
    m = Module("m", {"main": host, "kernel": kernel}, facts or Facts())
    verify_module(m)
    return m


def compiled(m: Module, target: str = "cpu") -> Program:
    code = compile_cpu(m, parse_target(target))
    return Program(code.spec, code.object, code.constants)


def interpreted(
    m: Module, arrays: Sequence[Any], sizes: dict[str, int] | None = None, shapes: Sequence[Any] = ()
) -> list[Any]:
    """The host function in the interpreter, on fresh zeroed outputs."""
    host = m.entry
    n = host.attrs["inputs"]
    it = Interpreter(m, sizes)
    from fluxir.ir.dims import evaluate
    from fluxir.ir.interp import bind_dims

    env = bind_dims(Func("f", Block(host.args[:n], (), ())), [np.shape(a) for a in arrays])
    outs = [np.zeros(tuple(evaluate(d, env) for d in a.type.shape), a.type.dtype.numpy) for a in host.args[n:]]
    it.call(host, [np.array(a) for a in arrays] + outs)
    return outs


def same(m: Module, arrays: Sequence[Any], targets: Sequence[str] = TARGETS) -> None:
    """Compiled results equal the interpreter's to the bit (any NaN equals any NaN)."""
    want = interpreted(m, arrays)
    for t in targets:
        for g, w in zip(compiled(m, t).call_flat(list(arrays)), want, strict=True):
            assert_same(g, w)


def assert_same(got: Any, want: Any) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    bits = f"u{got.dtype.itemsize}"
    nan = want != want
    np.testing.assert_array_equal(got != got, nan)
    np.testing.assert_array_equal(got.view(bits)[~nan], want.view(bits)[~nan])


def specials(name: str) -> Any:
    """Edge values of an element type."""
    d = DTYPES[name]
    if d.is_bool:
        return np.array([False, True])
    if d.is_integer:
        lo, hi = d.limits
        return np.array(
            sorted({lo, lo + 1, hi, hi - 1, 0, 1, 2, 3, 7, max(lo, -1), max(lo, -2), max(lo, -7), d.bits - 1, d.bits}),
            d.numpy,
        )
    small = [
        0.0,
        -0.0,
        0.3,
        -0.3,
        0.5,
        -0.5,
        0.7,
        1.0,
        -1.0,
        1.5,
        2.5,
        -2.5,
        3.0,
        -7.25,
        1e-3,
        100.0,
        40000.0,
        -60000.0,
    ]
    wide = {
        "f16": [6e-8, 65504.0],
        "bf16": [1e-38, 3e38],
        "f32": [1e-45, 3.4e38, 2.0**23 + 1, 8388607.5],
        "f64": [5e-324, 1.7e308, 2.0**52 + 1, 4503599627370495.5, 1e18],
    }
    return np.array([*small, *wide[name], np.inf, -np.inf, np.nan]).astype(d.numpy)


def elementwise(op: str, dtypes: Sequence[str], n: int, lanes: int, **attrs: Any) -> Module:
    """`op` over arrays of n elements, one at a time or `lanes` at a time (then a scalar rest)."""
    result = (
        build_func("r", [TensorType(DTYPES[d]) for d in dtypes], lambda b, *xs: b.emit(op, *xs, **attrs))
        .outs[0]
        .type.dtype
    )

    def body(b: Builder, *args: Value) -> None:
        *ins, out = args

        def run(lanes: int) -> Callable[..., None]:
            def step(ib: Builder, i: Value) -> None:
                xs = [ib.emit("load", m, i, lanes=lanes)[0] for m in ins]
                ib.store(out, ib.emit(op, *xs, **attrs)[0], i)

            return step

        whole = n - n % lanes if lanes else 0
        if whole:
            b.emit("for", b.index(0), b.index(whole), b.index(lanes), blocks=[b.block([INDEX], run(lanes))])
        b.emit("for", b.index(whole), b.index(n), b.index(1), blocks=[b.block([INDEX], run(0))])

    return module(body, [f"{d}[{n}]" for d in dtypes], [f"{result}[{n}]"])


def pairs(name: str, arity: int) -> list[Any]:
    """All combinations of edge values."""
    grid = np.meshgrid(*[specials(name)] * arity, indexing="ij")
    return [np.ascontiguousarray(g.ravel()) for g in grid]


# ---- arithmetic -----------------------------------------------------------------------------------------------------

FLOATS = ("f32", "f64", "f16", "bf16")
INTS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
EXACT = {
    1: "neg abs sign sqrt floor ceil round trunc isnan isinf isfinite".split(),
    2: "add sub mul div minimum maximum copysign lt le gt ge eq ne remainder fmod".split(),
    3: ["clamp"],
}
INTEGER = {
    1: "neg abs sign bit_not popcount clz".split(),
    2: "add sub mul div fmod floordiv remainder minimum maximum lt le gt ge eq ne bit_and bit_or bit_xor shift_left shift_right pow".split(),
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("arity", "op"), [(n, op) for n, ops in EXACT.items() for op in ops])
def test_exact_float_ops_have_the_meaning_s_bits(arity: int, op: str, name: str) -> None:
    arrays = (
        pairs(name, arity)
        if arity < 3
        else [np.resize(a, 600) for a in pairs(name, 2)] + [np.resize(specials(name)[::-1], 600)]
    )
    m = elementwise(op, [name] * arity, arrays[0].size, 4)
    want = interpreted(m, arrays)[0]
    for t in TARGETS:
        got = compiled(m, t)(*arrays)
        if op in ("minimum", "maximum", "clamp"):  # numpy does not order -0 and +0
            got, want = got + got.dtype.type(0), want + want.dtype.type(0)
        assert_same(got, want)


@pytest.mark.parametrize("name", INTS)
def test_integer_ops_have_the_meaning_s_bits(name: str) -> None:
    """All ops of one type in one kernel: every pair of edge values."""
    arrays = pairs(name, 2)
    n = arrays[0].size
    ops = [(op, 1) for op in INTEGER[1]] + [(op, 2) for op in INTEGER[2]]
    if name[0] == "u":
        ops.remove(("neg", 1))
    dtypes = [
        build_func("r", [TensorType(DTYPES[name])] * k, lambda b, *xs, op=op: b.emit(op, *xs)).outs[0].dtype
        for op, k in ops
    ]

    def body(b: Builder, x: Value, y: Value, *outs: Value) -> None:
        def step(ib: Builder, i: Value) -> None:
            given = [ib.load(x, i), ib.load(y, i)]
            for (op, k), out in zip(ops, outs, strict=True):
                ib.store(out, ib.emit(op, *given[:k])[0], i)

        b.emit("for", b.index(0), b.index(n), b.index(1), blocks=[b.block([INDEX], step)])

    same(module(body, [f"{name}[{n}]"] * 2, [f"{d}[{n}]" for d in dtypes]), arrays)


@pytest.mark.parametrize("lanes", [0, 8])
@pytest.mark.parametrize("name", ("i8", "i32", "u64"))
def test_constant_shifts_and_divisors(name: str, lanes: int) -> None:
    x = specials(name)
    x = np.resize(x, 24)
    outs = [
        ("shift_left", 3),
        ("shift_right", 3),
        ("shift_left", 63),
        ("shift_right", 100),
        ("div", 3),
        ("fmod", 3),
        ("div", 0),
        ("fmod", 0),
    ]
    if name[0] == "i":
        outs += [("div", -1), ("fmod", -1)]

    def body(b: Builder, m: Value, *results: Value) -> None:
        def step(ib: Builder, i: Value) -> None:
            v = ib.load(m, i, lanes=lanes)
            for (op, k), out in zip(outs, results, strict=True):
                ib.store(out, ib.emit(op, v, k)[0], i)

        b.emit("for", b.index(0), b.index(24), b.index(lanes or 1), blocks=[b.block([INDEX], step)])

    same(module(body, [f"{name}[24]"], [f"{name}[24]"] * len(outs)), [x])


@pytest.mark.parametrize("a", DTYPES)
def test_casts(a: str) -> None:
    x = specials(a)
    n = x.size
    outs = list(DTYPES)

    def body(b: Builder, m: Value, *results: Value) -> None:
        def step(ib: Builder, i: Value) -> None:
            v = ib.load(m, i)
            for d, out in zip(outs, results, strict=True):
                ib.store(out, ib.cast(v, dtype=d), i)

        b.emit("for", b.index(0), b.index(n), b.index(1), blocks=[b.block([INDEX], step)])

    same(module(body, [f"{a}[{n}]"], [f"{d}[{n}]" for d in outs]), [x])


@pytest.mark.parametrize("a", ["f32", "f64"])
@pytest.mark.parametrize("b", ["u8", "i8", "u16", "i16", "i32"])
def test_casts_to_integers_on_vectors(a: str, b: str) -> None:
    """All edges in all lanes, and no conversion of one number at a time."""
    low, high = DTYPES[b].limits
    edges = [float(e) for n in (low, high) for e in (n - 1, n - 0.5, n, n + 0.5, n + 1)]
    x = np.concatenate([specials(a), np.array(edges, DTYPES[a].numpy)])
    x = np.concatenate([x, np.zeros(-x.size % 8, x.dtype)])
    f = elementwise("cast", [a], x.size, 8, dtype=b)
    same(f, [x])
    text = compile_cpu(f, parse_target("cpu:x86-64-v3")).asm
    assert "cvtt" in text and not re.search(r"cvtts[sd]2si", text)


@pytest.mark.parametrize("name", ("f16", "bf16"))
def test_conversion_of_small_floats_is_exact(name: str) -> None:
    """Every value up; down: both neighbours and the midpoint of every pair, which decide the rounding."""
    d = DTYPES[name].numpy
    every = np.arange(65536, dtype=np.uint16).view(d)
    wide = every.astype(np.float32)
    finite = np.sort(wide[np.isfinite(wide)])
    middle = ((finite[1:].astype(np.float64) + finite[:-1].astype(np.float64)) / 2).astype(np.float32)
    probes = np.concatenate(
        [
            finite,
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            np.float32([np.inf, -np.inf, np.nan, 3.3e38, 7e4, 65519.9, 65520.0]),
        ]
    )
    for t in TARGETS:
        assert_same(compiled(elementwise("cast", [name], every.size, 0, dtype="f32"), t)(every), wide)
        with np.errstate(over="ignore"):
            assert_same(compiled(elementwise("cast", ["f32"], probes.size, 8, dtype=name), t)(probes), probes.astype(d))


@pytest.mark.parametrize("name", ("f32", "f64"))
def test_fma_is_rounded_once(name: str) -> None:
    """Products that cancel against the addend: one rounding shows."""
    rng = np.random.default_rng(1)
    d = DTYPES[name].numpy.type
    x, y = ((rng.uniform(1, 2, 512) * 2.0 ** rng.integers(-20, 20, 512)).astype(d) for _ in range(2))
    z = -(x * y) * (1 + rng.integers(-3, 4, 512).astype(d) * np.finfo(d).eps)
    edge = specials(name)[np.isfinite(specials(name))]
    edge = edge[(np.abs(edge) < 1e30) & ((np.abs(edge) > 1e-30) | (edge == 0))]
    x, y, z = np.concatenate([x, edge]), np.concatenate([y, edge[::-1]]), np.concatenate([z, -edge])
    same(elementwise("fma", [name] * 3, x.size, 4), [x, y, z])


@pytest.mark.parametrize("op", ["bit_and", "logical_xor", "logical_not", "eq", "lt", "select"])
def test_bools(op: str) -> None:
    n = 9
    rng = np.random.default_rng(2)
    count = {"logical_not": 1, "select": 3}.get(op, 2)
    same(elementwise(op, ["bool"] * count, n, 4), [rng.random(n) < 0.5 for _ in range(count)])


def test_a_bool_in_memory_may_be_any_byte() -> None:
    x = np.array([0, 1, 2, 255, 128], np.uint8).view(np.bool_)
    got = compiled(elementwise("logical_not", ["bool"], 5, 0))(x)
    np.testing.assert_array_equal(got.view(np.uint8), [1, 0, 0, 0, 0])


def test_every_elementwise_op_compiles_without_a_library_call() -> None:
    """On scalars and on vectors, for each float type it takes, without FMA, F16C and SSE4.1: `check_object` finds none."""
    v1 = parse_target("cpu:x86-64-v1")
    tried = 0
    for d in REGISTRY.values():
        if d.category not in ("elementwise", "compare") or d.attrs:
            continue
        for name in ("f32", "bf16"):
            count = len(d.samples[0].types)
            try:
                m = elementwise(d.name, [name] * count, 8, 4)
            except FluxError:
                continue
            compile_cpu(m, v1, opt_level=0)
            tried += 1
    assert tried > 80


def test_a_library_call_is_refused() -> None:
    """`frem` is what LLVM turns into a call of fmodf: the check on the object sees it."""
    unit = Unit(Dialect("x86_64-unknown-linux-gnu"), "m")
    unit.defines.append("define float @f(float %x, float %y) {\n %r = frem float %x, %y\n ret float %r\n}")
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine()
    data = machine.emit_object(llvm.parse_assembly(unit.text()))
    assert list(checks.undefined_symbols(data)) == ["fmodf"]
    with pytest.raises(FluxError, match="fmodf") as caught:
        checks.check_object(data)
    assert caught.value.code == "FX0514"


def test_legalising_legal_code_changes_nothing() -> None:
    m = elementwise("add", ["f32", "f32"], 8, 4)
    f = m.funcs["kernel"]
    assert legalize(f, parse_target("cpu")) is f


def test_an_op_without_code_is_an_error() -> None:
    m = module(
        lambda b, x: b.emit("store", x, b.cast(b.emit("thread_id")[0], dtype="f32"), b.index(0)) and None,
        [],
        ["f32[4]"],
    )
    with pytest.raises(FluxError) as caught:
        compile_cpu(m, parse_target("cpu"))
    assert caught.value.code == "FX0502"


# ---- vectors and memory ---------------------------------------------------------------------------------------------


def test_vector_ops() -> None:
    def body(b: Builder, x: Value, y: Value, s: Value, out: Value, lanes: Value, sums: Value) -> None:
        v, w = b.load(x, b.index(0), lanes=8), b.load(y, b.index(0), lanes=8)
        first = b.load(s, b.index(0))
        b.store(out, b.emit("shuffle", v, w, mask=(0, 8, 1, 9, 2, 10, 3, 15))[0], b.index(0))
        b.store(
            out,
            b.emit("insert", b.emit("splat", first, lanes=8)[0], b.emit("extract", v, lane=5)[0], lane=2)[0],
            b.index(8),
        )
        b.store(out, b.add(v, b.const(2.5, like=v)), b.index(16))
        b.store(lanes, b.lt(v, w), b.index(0))
        for k, op in enumerate(("add", "mul", "max", "min")):
            b.store(sums, b.emit("reduce_lanes", v, op=op)[0], b.index(k))

    rng = np.random.default_rng(3)
    m = module(body, ["f32[8]", "f32[8]", "f32[1]"], ["f32[24]", "bool[8]", "f32[4]"])
    same(m, [rng.normal(size=8).astype("f"), rng.normal(size=8).astype("f"), np.float32([7])])


@pytest.mark.parametrize("name", ("i16", "u32"))
def test_reduce_lanes_of_integers(name: str) -> None:
    ops = ("add", "mul", "max", "min", "and", "or")

    def body(b: Builder, x: Value, out: Value) -> None:
        v = b.load(x, b.index(0), lanes=4)
        for k, op in enumerate(ops):
            b.store(out, b.emit("reduce_lanes", v, op=op)[0], b.index(k))

    same(module(body, [f"{name}[4]"], [f"{name}[6]"]), [specials(name)[-5:-1]])


def test_memory_of_symbolic_shape() -> None:
    """Row-major addresses with sizes known at run time only, subviews, reinterpretation, and `dim` of any expression."""
    n, k = symbol("N"), symbol("K")

    def body(b: Builder, x: Value, out: Value, flat: Value, facts: Value) -> None:
        def outer(ib: Builder, i: Value) -> None:
            row = ib.subview(x, i)

            def inner(jb: Builder, j: Value) -> None:
                jb.store(out, jb.load(row, j, jb.index(1)), j, i)

            ib.emit("for", ib.index(0), ib.index(k), ib.index(1), blocks=[ib.block([INDEX], inner)])

        b.emit("for", b.index(0), b.index(n), b.index(1), blocks=[b.block([INDEX], outer)])
        line = b.reinterpret(x, type=MemType(DTYPES["i32"], (n * k * 2,)))
        b.emit(
            "for",
            b.index(0),
            b.index(n * k * 2),
            b.index(1),
            blocks=[b.block([INDEX], lambda ib, i: ib.emit("store", flat, ib.load(line, i), i) and None)],
        )
        sizes = [n * k * 2 + 3, (n + 7) // 4, maximum(n, k), ceildiv(k, 3) * n, n * n - k, (n - k) // 3, (k - n) % 4]
        for i, d in enumerate(sizes):
            b.store(facts, b.index(d), b.index(i))

    m = module(body, ["f32[N,K,2]"], ["f32[K,N]", "i32[N*K*2]", "i64[7]"], Facts({"N": (0, INF)}))
    for shape in ((3, 5, 2), (9, 2, 2), (0, 4, 2), (1, 1, 2)):
        same(m, [np.random.default_rng(4).normal(size=shape).astype("f")], ["cpu"])


def test_local_memory_copy_view_and_atomic() -> None:
    def body(b: Builder, x: Value, out: Value, counts: Value) -> None:
        t = b.alloc(type=parse_type("&local.f32[4,4]"), zero=True)
        b.copy(out, t)
        for i in range(2):
            b.store(counts, b.const(0, dtype="i32"), b.index(i))
        row = b.subview(t, b.index(2))
        b.copy(b.subview(out, b.index(1)), x)
        for i in range(4):
            b.store(row, b.load(x, b.index(3 - i)), b.index(i))
        b.copy(b.subview(out, b.index(0)), b.reinterpret(row, type=parse_type("&f32[4]")))
        b.copy(b.subview(out, b.index(2)), b.reinterpret(b.subview(t, b.index(0)), type=parse_type("&f32[4]")))
        arena = b.reinterpret(out, type=parse_type("&u8[64]"))
        third = b.view(arena, type=parse_type("&f32[2,2]"), offset=48)
        b.store(third, b.const(9.0, dtype="f32"), b.index(1), b.index(0))
        for op in ("add", "max", "add", "min"):
            b.emit("atomic", counts, b.const({"add": 5, "max": 40, "min": 3}[op], dtype="i32"), b.index(1), op=op)

    same(module(body, ["f32[4]"], ["f32[4,4]", "i32[2]"]), [np.float32([1, 2, 3, 4])])


# ---- control flow ---------------------------------------------------------------------------------------------------


def test_loops_branches_and_carries() -> None:
    """Collatz lengths (while in if in for), a Fibonacci carry that swaps, a bool and a vector carried through."""

    def body(b: Builder, x: Value, out: Value, fib: Value, flags: Value) -> None:
        def each(ib: Builder, i: Value) -> None:
            v = ib.load(x, i)

            def count(tb: Builder) -> Value:
                def cond(cb: Builder, n: Value, steps: Value) -> Value:
                    return cb.ne(n, 1)

                def step(sb: Builder, n: Value, steps: Value) -> tuple[Value, ...]:
                    even = sb.eq(sb.fmod(n, 2), 0)
                    (nxt,) = sb.emit(
                        "if",
                        even,
                        blocks=[sb.block([], lambda q: q.div(n, 2)), sb.block([], lambda q: q.add(q.mul(n, 3), 1))],
                    )
                    return nxt, sb.add(steps, 1)

                carry = [INDEX, INDEX]
                return tb.emit("while", v, tb.index(0), carry=2, blocks=[tb.block(carry, cond), tb.block(carry, step)])[
                    1
                ]

            (r,) = ib.emit("if", ib.gt(v, 0), blocks=[ib.block([], count), ib.block([], lambda q: q.index(-1))])
            ib.store(out, r, i)

        b.emit("for", b.index(0), b.index(6), b.index(1), blocks=[b.block([INDEX], each)])
        a, c = b.emit(
            "for",
            b.index(0),
            b.index(30),
            b.index(3),
            b.index(0),
            b.index(1),
            blocks=[b.block([INDEX] * 3, lambda q, i, s, t: (t, q.add(s, t)))],
        )
        b.store(fib, a, b.index(0))
        b.store(fib, c, b.index(1))
        none = b.emit(
            "for",
            b.index(5),
            b.index(5),
            b.index(1),
            b.index(42),
            blocks=[b.block([INDEX] * 2, lambda q, i, s: q.add(s, i))],
        )[0]
        b.store(fib, none, b.index(2))
        (odd,) = b.emit(
            "for",
            b.index(0),
            b.index(7),
            b.index(1),
            b.const(False),
            blocks=[b.block([INDEX, BOOL], lambda q, i, s: q.logical_not(s))],
        )
        b.store(flags, odd, b.index(0))
        start = b.load(x, b.index(0), lanes=4)
        (v,) = b.emit(
            "for",
            b.index(0),
            b.index(3),
            b.index(1),
            start,
            blocks=[b.block([INDEX, start.type], lambda q, i, s: q.add(s, s), ["i", "s"])],
            unroll=1,
            vectorize=False,
        )
        b.store(out, v, b.index(6))

    same(module(body, ["i64[6]"], ["i64[10]", "i64[3]", "bool[1]"]), [np.array([1, 27, 0, -5, 6, 97])], ["cpu"])


def test_a_while_s_constants() -> None:
    def body(b: Builder, x: Value, out: Value) -> None:
        k = b.load(x, b.index(0))
        types = [k.type, k.type]
        (r,) = b.emit(
            "while",
            b.const(0.0, dtype="f32"),
            k,
            carry=1,
            blocks=[b.block(types, lambda q, c, s: q.lt(c, s)), b.block(types, lambda q, c, s: q.add(c, 0.75))],
        )
        b.store(out, r, b.index(0))

    same(module(body, ["f32[1]"], ["f32[1]"]), [np.float32([10])], ["cpu"])


@pytest.mark.parametrize("name", ("f32", "bool", "i64"))
def test_loops_that_move_memory(name: str) -> None:
    """Copies and fills with offsets, empty ranges, a stride, an overlap within one memory; beside vectors, so that the
    loops become calls of memcpy and memset where they may."""

    def body(b: Builder, x: Value, n: Value, out: Value, same: Value) -> None:
        dtype = x.type.dtype
        zero = b.const(False if dtype.is_bool else 0.0 if dtype.is_float else 0, dtype=dtype)
        size = b.load(n, b.index(0))

        def loop(lo: Any, hi: Any, step: int, row: Callable[..., Any]) -> None:
            lo, hi = (v if isinstance(v, Value) else b.index(v) for v in (lo, hi))
            b.emit(
                "for",
                lo,
                hi,
                b.index(step),
                blocks=[b.block([INDEX], lambda q, i: row(q, i) and None)],
                vectorize=False,
            )

        v = b.load(x, b.index(0), b.index(0), lanes=4)
        for r in range(6):
            for k in range(0, 16, 4):
                b.store(out, v, b.index(r), b.index(k))
        loop(0, 16, 1, lambda q, i: q.emit("store", same, q.load(x, q.index(2), i), i))
        loop(2, size, 1, lambda q, i: q.emit("store", out, zero, q.index(0), i))
        loop(size, 3, 1, lambda q, i: q.emit("store", out, zero, q.index(1), i))  # empty
        loop(
            1,
            9,
            1,
            lambda q, i: q.emit("store", out, q.load(x, q.index(1), q.add(i, 3)), q.index(2), q.sub(q.mul(i, 1), 1)),
        )
        loop(0, 15, 2, lambda q, i: q.emit("store", out, q.load(x, q.index(1), i), q.index(3), i))
        loop(0, 15, 1, lambda q, i: q.emit("store", same, q.load(same, i), q.add(i, 1)))  # each reads the one before
        loop(0, 4, 1, lambda q, i: q.emit("store", out, q.load(x, i, i), q.index(4), i))  # a diagonal
        loop(0, 8, 1, lambda q, i: q.emit("store", out, q.load(x, q.index(0), q.mul(i, 2)), q.index(5), i))

    x = np.random.default_rng(7).integers(0, 2 if name == "bool" else 100, (4, 16)).astype(DTYPES[name].numpy)
    m = module(body, [f"{name}[4,16]", "i64[1]"], [f"{name}[6,16]", f"{name}[16]"])
    same(m, [x, np.array([11])], ["cpu"])
    code = compile_cpu(m, parse_target("cpu"))
    if name != "bool":
        assert "llvm.memcpy" in code.vector_source and "llvm.memset" in code.vector_source


def test_integer_arithmetic_on_constants_needs_no_instruction() -> None:
    def body(b: Builder, x: Value, out: Value) -> None:
        i = b.load(x, b.index(0))
        terms = [
            b.add(i, 0),
            b.add(b.index(0), i),
            b.sub(i, 0),
            b.mul(i, 1),
            b.mul(b.index(1), i),
            b.mul(i, 0),
            b.sub(b.index(3), 5),
            b.mul(b.index(1 << 40), 1 << 40),
        ]
        for k, t in enumerate(terms):
            b.store(out, t, b.index(k))

    same(module(body, ["i64[1]"], ["i64[8]"]), [np.array([-7])], ["cpu"])


@pytest.mark.parametrize("op", ["sin", "exp", "erf"])
def test_copied_and_called_recipes_have_the_same_bits(op: str) -> None:
    """In a kernel on vectors long recipes are functions; in one on scalars LLVM vectorises the copied instructions."""
    n = 103

    def rows(b: Builder, x: Value, out: Value) -> None:
        def step(lanes: int) -> Callable[..., None]:
            return lambda q, i: q.emit("store", out, q.emit(op, q.load(x, i, lanes=lanes))[0], i) and None

        b.emit("for", b.index(0), b.index(96), b.index(8), blocks=[b.block([INDEX], step(8))])
        b.emit("for", b.index(96), b.index(n), b.index(1), blocks=[b.block([INDEX], step(0))], vectorize=False)

    x = np.random.default_rng(8).normal(size=n, scale=5).astype("f")
    called = compile_cpu(module(rows, [f"f32[{n}]"], [f"f32[{n}]"]), parse_target("cpu"))
    assert f"@recipe.{op}." in called.vector_source
    copied = compile_cpu(elementwise(op, ["f32"], n, 0), parse_target("cpu"))
    assert "@recipe." not in copied.source + copied.vector_source
    got = [Program(c.spec, c.object, c.constants)(x) for c in (called, copied)]
    assert_same(*got)


# ---- host functions -------------------------------------------------------------------------------------------------


def scale_kernel(name: str = "scale") -> Func:
    """out[i] = x[i] * 2 + 1 over f32[N], in parallel pieces of one element."""

    def body(b: Builder, x: Value, out: Value) -> None:
        b.emit(
            "parallel",
            b.index(symbol("N")),
            blocks=[
                b.block([INDEX], lambda q, i: q.emit("store", out, q.add(q.mul(q.load(x, i), 2.0), 1.0), i) and None)
            ],
        )

    return build_func(name, mems("f32[N]", "f32[N]"), body, level="kernel")


def test_host_control_flow_alloc_and_constants() -> None:
    table = np.arange(5, dtype=np.float32)

    def host(b: Builder, x: Value, flag: Value, out: Value) -> None:
        t = b.alloc(type=x.type)
        b.emit("launch", x, t, callee="scale")

        def yes(q: Builder) -> None:
            def again(r: Builder, i: Value) -> None:
                u = r.alloc(type=x.type, zero=True)
                r.emit("launch", t, u, callee="scale")
                r.copy(t, u)

            q.emit("for", q.index(0), q.index(3), q.index(1), blocks=[q.block([INDEX], again)])

        def no(q: Builder) -> None:
            q.copy(q.subview(q.reinterpret(t, type=parse_type("&f32[1,N]")), q.index(0)), x)

        b.emit("if", b.load(flag), blocks=[b.block([], yes), b.block([], no)])
        b.copy(b.subview(out, b.index(0)), t)
        c = b.constant(value=table)
        five = b.alloc(type=parse_type("&f32[5]"))
        b.emit("launch", c, b.constant(value=table.copy()), five, callee="sum5")
        b.copy(
            b.view(
                b.reinterpret(out, type=parse_type("&u8[N*8+20]")), type=parse_type("&f32[5]"), offset=symbol("N") * 4
            ),
            five,
        )

    sum5 = build_func(
        "sum5",
        mems("f32[5]", "f32[5]", "f32[5]"),
        lambda b, x, y, o: (
            [b.store(o, b.add(b.load(x, b.index(i)), b.load(y, b.index(i))), b.index(i)) for i in range(5)] and None
        ),
        level="kernel",
    )
    f = build_func(
        "main",
        mems("f32[N]", "bool", "f32[2,N]"),
        lambda b, *a: host(b, *a),
        ["x", "flag", "out"],
        level="host",
        inputs=2,
    )
    # The view writes behind the first row: give the output room by calling it with N = 5 only.
    m = Module("m", {"main": f, "scale": scale_kernel(), "sum5": sum5})
    code = compile_cpu(m, parse_target("cpu"))
    assert len(code.constants) == 1, "equal constants are shared"
    p = Program(code.spec, code.object, code.constants)
    x = np.arange(5, dtype=np.float32)
    want = x
    for _ in range(4):
        want = want * 2 + 1
    for flag, first in ((True, want), (False, x)):
        got = p(x, np.array(flag))
        np.testing.assert_array_equal(got, [first, table * 2])


def test_sizes_of_a_call() -> None:
    """The callee's symbols are given in the caller's; others go by name."""
    callee = build_func(
        "twice",
        mems("f32[N]", "f32[N]"),
        lambda b, x, o: b.emit("launch", x, o, callee="scale") and None,
        level="host",
        inputs=1,
    )

    def host(b: Builder, x: Value, out: Value) -> None:
        flat_in = b.reinterpret(x, type=parse_type("&f32[A*3]"))
        flat_out = b.reinterpret(out, type=parse_type("&f32[A*3]"))
        b.emit("call", flat_in, flat_out, callee="twice", results=(), dims=(("N", symbol("A") * 3),))

    f = build_func("main", mems("f32[A,3]", "f32[A,3]"), host, ["x", "out"], level="host", inputs=1)
    p = compiled(Module("m", {"main": f, "twice": callee, "scale": scale_kernel()}))
    x = np.random.default_rng(5).normal(size=(7, 3)).astype("f")
    np.testing.assert_array_equal(p(x), x * 2 + 1)


def recursive(leak: bool = False) -> Module:
    """f(x, n) = n <= 0 ? x : f(2x + 1, n - 1), with a frame of its own in every call."""

    def host(b: Builder, x: Value, n: Value, out: Value) -> None:
        def stop(q: Builder) -> None:
            q.copy(out, x)

        def go(q: Builder) -> None:
            t, m = q.alloc(type=x.type), q.alloc(type=n.type)
            q.emit("launch", x, t, callee="scale")
            q.store(m, q.sub(q.load(n), 1))
            q.emit("call", t, m, out, callee="main", results=(), dims=(("N", symbol("N")),))

        b.emit("if", b.le(b.load(n), 0), blocks=[b.block([], stop), b.block([], go)])

    f = build_func("main", mems("f32[N]", "i64", "f32[N]"), host, ["x", "n", "out"], level="host", inputs=2)
    return Module("m", {"main": f, "scale": scale_kernel()})


def test_recursion_and_its_limit() -> None:
    p = compiled(recursive())
    x = np.float32([1, 2, 3])
    np.testing.assert_array_equal(p(x, np.int64(0)), x)
    np.testing.assert_array_equal(p(x, np.int64(5)), (x + 1) * 32 - 1)
    with pytest.raises(FluxError, match=str(MAX_DEPTH)) as caught:
        p(x, np.int64(10**6))
    assert caught.value.code == "FX0109"
    np.testing.assert_array_equal(p(x, np.int64(1)), x * 2 + 1)  # and goes on working


def test_a_callee_s_arena_is_allocated_when_it_is_not_given() -> None:
    def inner(b: Builder, x: Value, out: Value, arena: Value) -> None:
        t = b.view(arena, type=x.type, offset=0)
        b.emit("launch", x, t, callee="scale")
        b.emit("launch", t, out, callee="scale")

    callee = build_func(
        "inner", [*mems("f32[N]", "f32[N]"), *mems("u8[N*4]")], inner, level="host", inputs=1, arena=symbol("N") * 4
    )
    f = build_func(
        "main",
        mems("f32[N]", "f32[N]"),
        lambda b, x, o: b.emit("call", x, o, callee="inner", results=(), dims=()) and None,
        level="host",
        inputs=1,
    )
    p = compiled(Module("m", {"main": f, "inner": callee, "scale": scale_kernel()}))
    x = np.arange(100, dtype="f")
    np.testing.assert_array_equal(p(x), x * 4 + 3)


def test_memory_that_the_system_refuses_is_an_error() -> None:
    def host(b: Builder, x: Value, out: Value) -> None:
        first = b.alloc(type=x.type)
        b.alloc(type=MemType(DTYPES["f32"], (symbol("N") * (1 << 59),)))
        b.copy(out, first)

    p = compiled(Module("m", {"main": build_func("main", mems("f32[N]", "f32[N]"), host, level="host", inputs=1)}))
    with pytest.raises(FluxError) as caught:
        p(np.zeros(3, "f"))
    assert caught.value.code == "FX0609"


def test_equal_kernels_are_emitted_once() -> None:
    def host(b: Builder, x: Value, out: Value) -> None:
        b.emit("launch", x, out, callee="scale")
        b.emit("launch", x, out, callee="again")

    f = build_func("main", mems("f32[N]", "f32[N]"), host, level="host", inputs=1)
    code = compile_cpu(
        Module("m", {"main": f, "scale": scale_kernel(), "again": scale_kernel("again")}), parse_target("cpu")
    )
    written = code.source + code.vector_source
    assert len(re.findall(r"define .* void @kernel\.scale\(", written)) == 1
    assert "kernel.again" not in written


def planned(offset: int) -> CompiledCode:
    """x -> arena[0] -> arena[offset] -> out; the middle launch may work in place."""

    def host(b: Builder, x: Value, out: Value, arena: Value) -> None:
        t = b.view(arena, type=x.type, offset=0)
        u = b.view(arena, type=x.type, offset=offset)
        b.emit("launch", x, t, callee="scale")
        b.emit("launch", t, u, callee="scale", inplace=((1, 0),))
        b.copy(out, u)

    f = build_func(
        "main", mems("f32[64]", "f32[64]", "u8[512]"), host, ["x", "out", "arena"], level="host", inputs=1, arena=512
    )

    def body(b: Builder, x: Value, out: Value) -> None:
        b.emit(
            "for",
            b.index(0),
            b.index(64),
            b.index(1),
            blocks=[
                b.block([INDEX], lambda q, i: q.emit("store", out, q.add(q.mul(q.load(x, i), 2.0), 1.0), i) and None)
            ],
        )

    return compile_cpu(
        Module("m", {"main": f, "scale": build_func("scale", mems("f32[64]", "f32[64]"), body, level="kernel")}),
        parse_target("cpu:x86-64-v3"),
    )


def test_in_place_launches_take_one_pointer_and_still_vectorise() -> None:
    x = np.arange(64, dtype="f")
    for offset in (0, 256):
        code = planned(offset)
        kernels = len(re.findall(r"define .* void @kernel\.scale", code.source + code.vector_source))
        assert kernels == (2 if offset == 0 else 1)
        p = Program(code.spec, code.object, code.constants)
        np.testing.assert_array_equal(p(x), x * 4 + 3)
    inplace = planned(0).asm.split("kernel.scale.1:")[1].split("retq")[0]
    assert "ymm" in inplace


def test_kernels_vectorise_on_the_target_s_registers() -> None:
    m = elementwise("exp", ["f32"], 1 << 14, 0)
    wide = compile_cpu(m, parse_target("cpu:x86-64-v3")).asm
    assert "vfmadd" in wide and "ymm" in wide
    narrow = compile_cpu(m, parse_target("cpu:x86-64-v1")).asm
    assert "ymm" not in narrow and "vfmadd" not in narrow and "mulpd" in narrow


def test_sums_stay_in_order_unless_told_otherwise() -> None:
    def total(fast: bool) -> Module:
        def body(b: Builder, x: Value, out: Value) -> None:
            zero = b.const(0.0, dtype="f32")
            (s,) = b.emit(
                "for",
                b.index(0),
                b.index(4096),
                b.index(1),
                zero,
                blocks=[b.block([INDEX, zero.type], lambda q, i, s: q.add(s, q.load(x, i)))],
                fast=fast,
            )
            b.store(out, s, b.index(0))

        return module(body, ["f32[4096]"], ["f32[1]"])

    x = np.random.default_rng(6).normal(size=4096).astype("f")
    same(total(False), [x])
    fast = compile_cpu(total(True), parse_target("cpu:x86-64-v3"))
    assert "vaddps" in fast.asm, "a relaxed sum is vectorised"
    got = Program(fast.spec, fast.object, fast.constants)(x)
    np.testing.assert_allclose(got, [x.astype(np.float64).sum()], rtol=1e-4, atol=1e-4)


# ---- the compiler itself --------------------------------------------------------------------------------------------


def test_equal_programs_give_equal_objects() -> None:
    m = recursive()
    a, b = (compile_cpu(m, parse_target("cpu:x86-64-v3")) for _ in range(2))
    assert a.object == b.object and a.source == b.source and a.spec == b.spec


def test_all_optimisation_levels_agree() -> None:
    m = elementwise("tanh", ["f32"], 64, 8)
    x = np.linspace(-9, 9, 64, dtype="f")
    results = [
        Program(c.spec, c.object, c.constants)(x)
        for c in (compile_cpu(m, parse_target("cpu"), opt_level=n) for n in range(4))
    ]
    for r in results[1:]:
        assert_same(r, results[0])


def test_fast_accuracy_contracts() -> None:
    def body(b: Builder, x: Value, out: Value) -> None:
        v = b.load(x, b.index(0))
        b.store(out, b.add(b.mul(v, v), 1.0), b.index(0))

    m = module(body, ["f32[1]"], ["f32[1]"])
    v3 = parse_target("cpu:x86-64-v3")
    assert "vfmadd" not in compile_cpu(m, v3).asm
    assert "vfmadd" in compile_cpu(m, v3, accuracy="fast").asm


def test_text_that_llvm_rejects_is_an_internal_error_with_its_line() -> None:
    with pytest.raises(FluxError, match="LLVM rejected") as caught:
        backend.object_of("define void @f() {\n  %x = nonsense i32 1\n  ret void\n}", "", parse_target("cpu"), 2, {})
    assert caught.value.code == "FX0503" and "nonsense" in str(caught.value)


def test_the_spec_solves_sizes_from_shapes() -> None:
    facts = Facts({"A": (1, INF)}, {}, ((symbol("C"), symbol("A") * 2),))

    def host(b: Builder, x: Value, y: Value, out: Value) -> None:
        b.copy(out, b.reinterpret(y, type=out.type))

    f = build_func(
        "main", mems("f32[A*2+1,B]", "f32[A*B]", "f32[C,B,1]"), host, ["x", "y", "out"], level="host", inputs=2
    )
    spec = compile_cpu(Module("m", {"main": f}, facts), parse_target("cpu")).spec
    assert [s["symbol"] for s in spec["solve"]] == ["A", "B", "C"]
    g = build_func("main", mems("f32[A*B]", "f32[A*B]"), lambda b, x, o: b.copy(o, x) and None, level="host", inputs=1)
    with pytest.raises(FluxError, match="do not determine") as caught:
        compile_cpu(Module("m", {"main": g}), parse_target("cpu"))
    assert caught.value.code == "FX0604"


@functools.cache
def _dtype_names() -> list[str]:
    return [dtype_of(n).name for n in DTYPES]


def test_register_types() -> None:
    e = Emitter(Unit(Dialect("x", half="half"), "m"), {})
    assert [e.scalar(DTYPES[n]) for n in _dtype_names()] == [
        "i1",
        "i8",
        "i16",
        "i32",
        "i64",
        "i8",
        "i16",
        "i32",
        "i64",
        "half",
        "i16",
        "float",
        "double",
    ]
    assert e.literal(1.5, DTYPES["bf16"]) == str(0x3FC0) and e.literal(1.5, DTYPES["f16"]) == "0xH3E00"
    assert Attrs(a=1).a == 1
