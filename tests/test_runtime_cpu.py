"""The CPU runtime: what a program accepts and refuses, threads, artifacts, the object loader, size expressions.

Nothing here needs the passes or the schedule: programs are host functions and kernels written out.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fluxir.ops  # noqa: F401  declares the ops
from fluxir import config
from fluxir.codegen.x86 import compile_cpu
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Module, Value
from fluxir.ir.dims import INF, Facts, symbol
from fluxir.ir.types import INDEX, parse_type
from fluxir.runtime import elf, native, pool, sizes
from fluxir.runtime.artifact import Part, artifact_bytes, read_artifact, write_artifact
from fluxir.runtime.program import Program
from fluxir.target import parse_target

REPO = Path(__file__).resolve().parent.parent


def build(
    types: Sequence[str],
    inputs: int,
    body: Callable[..., Any],
    facts: Facts | None = None,
    names: Sequence[str] = (),
    arena: Any = None,
) -> Any:
    """Compiled code of one kernel over memories (inputs, then outputs) and the host function that launches it."""
    mems = [parse_type("&" + t) for t in types]
    kernel = build_func("kernel", mems, body, level="kernel")
    extra = {} if arena is None else {"arena": arena}
    args = mems if arena is None else [*mems, parse_type(f"&u8[{arena}]")]

    def launch(b: Builder, *given: Value) -> None:
        b.emit("launch", *given[: len(mems)], callee="kernel", outputs=len(types) - inputs)

    host = build_func(
        "main", args, launch, names or [f"x{i}" for i in range(len(types))], level="host", inputs=inputs, **extra
    )
    return compile_cpu(Module("m", {"main": host, "kernel": kernel}, facts or Facts()), parse_target("cpu"))


def program(*args: Any, **kw: Any) -> Program:
    code = build(*args, **kw)
    return Program(code.spec, code.object, code.constants)


def each(n: Any, step: Callable[..., Any], parallel: bool = False) -> Callable[..., None]:
    """A kernel body that runs `step(builder, i, *memories)` for i below n."""

    def body(b: Builder, *memories: Value) -> None:
        block = b.block([INDEX], lambda q, i: step(q, i, *memories) and None)
        if parallel:
            b.emit("parallel", b.index(n), blocks=[block])
        else:
            b.emit("for", b.index(0), b.index(n), b.index(1), blocks=[block])

    return body


def adder(facts: Facts | None = None) -> Program:
    """x + y over f32[N, 3]."""

    def step(b: Builder, i: Value, x: Value, y: Value, out: Value) -> None:
        for j in range(3):
            b.store(out, b.add(b.load(x, i, b.index(j)), b.load(y, i, b.index(j))), i, b.index(j))

    return program(["f32[N,3]", "f32[N,3]", "f32[N,3]"], 2, each(symbol("N"), step), facts, ["x", "y", "out"])


def caught(call: Callable[[], Any]) -> FluxError:
    with pytest.raises(FluxError) as found:
        call()
    return found.value


X = np.arange(12, dtype=np.float32).reshape(4, 3)


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_calls_by_position_by_name_and_again() -> None:
    p = adder()
    for _ in range(3):
        np.testing.assert_array_equal(p(X, X), X * 2)
        np.testing.assert_array_equal(p(X, y=X), X * 2)
        np.testing.assert_array_equal(p(y=X, x=X + 1), X * 2 + 1)
        np.testing.assert_array_equal(p.call_flat((X, X))[0], X * 2)
        for n in (0, 1, 7):
            x = np.ones((n, 3), np.float32)
            np.testing.assert_array_equal(p(x, x), x * 2)
    assert "f32[N, 3]" in repr(p)


def test_fresh_results_every_time() -> None:
    p = adder()
    first = p(X, X)
    second = p(X, X)
    assert not np.may_share_memory(first, second) and first.flags.writeable and first.flags.owndata


def test_large_results_are_aligned() -> None:
    p = adder()
    x = np.zeros((10_000, 3), np.float32)
    assert all(p(x, x).ctypes.data % 64 == 0 for _ in range(5))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x[::-1][::-1],
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: (
            np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.uint8).copy()[0:].view(np.float32).reshape(x.shape)
        ),
        lambda x: np.frombuffer(b"12" + x.tobytes(), np.float32, offset=2).reshape(x.shape),  # misaligned
        lambda x: x.view(np.ndarray),
        lambda x: np.broadcast_to(x, x.shape),  # read-only
        lambda x: x.astype(np.dtype("f4", metadata={"a": 1})),
        lambda x: np.ma.masked_array(x),
    ],
)
def test_any_layout_is_taken(form: Callable[[Any], Any]) -> None:
    x = form(X)
    p = adder()
    for _ in range(2):
        got = p(x, X)
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, X * 2)


def test_the_fast_way_notices_every_difference() -> None:
    """After a call that fits, each of these must not be taken for the same thing."""
    p = adder()
    p(X, X)
    np.testing.assert_array_equal(p(np.asfortranarray(X), X), X * 2)
    assert caught(lambda: p(X.astype(np.int32), X)).code == "FX0603"
    assert caught(lambda: p(X.reshape(3, 4), X.reshape(3, 4))).code == "FX0602"
    assert caught(lambda: p(X.ravel(), X)).code == "FX0602"
    assert caught(lambda: p(X)).code == "FX0601"
    assert caught(lambda: p.call_flat([X])).code == "FX0601"
    assert caught(lambda: p.call_flat([X, X, X])).code == "FX0601"
    assert caught(lambda: p(X, "text")).code == "FX0606"
    assert caught(lambda: p(X, None)).code == "FX0606"
    np.testing.assert_array_equal(p(X, X), X * 2)


def test_dlpack_and_array_objects() -> None:
    class Exporter:
        def __init__(self, a: Any, device: tuple[int, int] = (1, 0)) -> None:
            self.a, self.device = a, device

        def __dlpack__(self, **kw: Any) -> Any:
            return self.a.__dlpack__(**kw)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.device

    class Wrapper:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return X

    p = adder()
    np.testing.assert_array_equal(p(Exporter(X), Wrapper()), X * 2)
    assert caught(lambda: p(Exporter(X, (2, 0)), X)).code == "FX0610"
    assert caught(lambda: p(Exporter(np.array(["a"])), X)).code == "FX0612"


def test_scalars() -> None:
    for name, good, bad in (
        ("f32", [2, 2.5, np.float32(3)], [True, np.float64(2)]),
        ("i32", [7, np.int32(-1)], [2.0, True, 2**40]),
        ("bool", [True, np.bool_(False)], [1, 0.0]),
    ):
        p = program([name, name], 1, lambda b, x, out: b.store(out, b.load(x)) and None)
        for value in good:
            got = p(value)
            assert (
                got.shape == ()
                and got.dtype.name.startswith({"f32": "float32", "i32": "int32", "bool": "bool"}[name])
                and got == value
            )
        for value in bad:
            assert caught(lambda v=value, p=p: p(v)).code == "FX0603", value


def test_errors_name_the_argument() -> None:
    p = adder()
    e = caught(lambda: p(X, np.zeros((4, 5), np.float32)))
    assert e.code == "FX0602" and "y: f32[N, 3]" in e.message and "axis 1 is 5" in e.message
    e = caught(lambda: p(X, np.zeros((5, 3), np.float32)))
    assert e.code == "FX0611" and "N = 4" in e.message and "N = 5" in e.message
    e = caught(lambda: p(X, X.astype(np.float64)))
    assert e.code == "FX0603" and "y" in e.message and "float64" in e.message and "astype(np.float32)" in (e.help or "")
    assert caught(lambda: p(X, z=X)).code == "FX0607"
    assert "twice" in caught(lambda: p(X, X, y=X)).message
    assert "y missing" in caught(lambda: p(x=X)).message
    assert caught(lambda: p(X, X, X)).code == "FX0601"


def test_guards() -> None:
    n = symbol("N")

    def named(facts: Facts) -> Program:
        return adder(facts)

    assert "N >= 2" in caught(lambda: named(Facts({"N": (2, INF)}))(X[:1], X[:1])).message
    assert "N <= 3" in caught(lambda: named(Facts({"N": (0, 3)}))(X, X)).message
    e = caught(lambda: named(Facts({}, {"N": 8}))(X, X))
    assert e.code == "FX0604" and "N % 8 == 0" in e.message and "N is 4" in e.message
    assert "these are 4 and 6" in caught(lambda: named(Facts({}, {}, ((n, n // 2 * 3),)))(X, X)).message
    assert named(Facts({"N": (1, 9)}, {"N": 2}, ((n, n // 2 * 2),)))(X, X).shape == (4, 3)


def test_out() -> None:
    p = adder()
    out = np.empty((4, 3), np.float32)
    assert p(X, X, out=out) is out
    np.testing.assert_array_equal(out, X * 2)
    assert p(X, X, out=[out]) is out
    frozen = out.copy()
    frozen.flags.writeable = False
    shared = np.empty((4, 3), np.float32)
    for wrong, why in (
        (np.empty((3, 3), np.float32), "float32[3, 3]"), (np.empty((4, 3)), "float64"), (frozen, "read-only"), (np.asfortranarray(out), "not contiguous"),
        ([], "results"), ([None], "NoneType"),
    ):  # fmt: skip
        e = caught(lambda w=wrong: p(X, X, out=w))
        assert e.code == "FX0605" and why in e.message
    assert "overlaps an input" in caught(lambda: p(shared, X, out=shared)).message


def test_several_results_and_none_of_them_large() -> None:
    def step(b: Builder, i: Value, x: Value, double: Value, positive: Value) -> None:
        v = b.load(x, i)
        b.store(double, b.mul(b.cast(v, dtype="f64"), 2.0), i)
        b.store(positive, b.gt(v, 0.0), i)

    p = program(["bf16[4]", "f64[4]", "bool[4]"], 1, each(4, step))
    x = np.array([1, -2, 0.5, 0], ml_dtypes.bfloat16)
    for _ in range(2):
        double, positive = p(x)
        np.testing.assert_array_equal(double, x.astype(np.float64) * 2)
        np.testing.assert_array_equal(positive, [True, False, True, False])


def test_many_shapes_do_not_pile_up() -> None:
    p = adder()
    for n in range(600):
        x = np.full((n, 3), n, np.float32)
        assert (p(x, x) == 2 * n).all()
    assert len(p._plans) <= 256


def test_an_arena_that_cannot_be_had() -> None:
    p = program(
        ["f32[N]", "f32[N]"],
        1,
        each(symbol("N"), lambda b, i, x, o: b.store(o, b.load(x, i), i)),
        arena=symbol("N") * (1 << 50),
    )
    e = caught(lambda: p(np.zeros(4096, np.float32)))
    assert e.code == "FX0609" and str(4096 << 50) in e.message


# ---- the slow way and its twin --------------------------------------------------------------------------------------


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.calls_are_known(), "on this Python and numpy the fast way must work"
    programs = [adder() for _ in range(2)]
    monkeypatch.setattr(programs[1], "remember", lambda route: None)
    for n in (0, 5, 5, 3, 3, 40_000, 40_000):
        x = np.random.default_rng(n).normal(size=(n, 3)).astype("f")
        results = [p(x, x) for p in programs]
        assert all(r.flags.writeable and r.flags.c_contiguous and r.shape == (n, 3) for r in results)
        np.testing.assert_array_equal(results[0], results[1])
    assert programs[0]._routes and not programs[1]._routes


def test_calls_neither_leak_nor_drop_references() -> None:
    p = adder()
    x = np.ones((2, 3), np.float32)
    p(x, x)
    with pytest.raises(FluxError):
        p(x)
    counted = [x, x.dtype, None, np.ndarray]
    gc.collect()
    before = [sys.getrefcount(o) for o in counted]
    results = [p(x, x) for _ in range(100)]
    during = [sys.getrefcount(o) for o in counted]
    assert during[0] == before[0] and during[1] == before[1] + 100  # each result holds its dtype
    held = sys.getrefcount(results[0])  # outside of an assert, which pytest rewrites to hold another
    assert held == 2
    del results
    for _ in range(100):
        with pytest.raises(FluxError):
            p(x)
        p(x, x)
    gc.collect()  # exceptions and their frames
    after = [sys.getrefcount(o) for o in counted]
    assert all(abs(a - b) < 20 for a, b in zip(after, before, strict=True)), (before, after)


# ---- threads --------------------------------------------------------------------------------------------------------


def heavy() -> Program:
    """A thousand dependent steps for each element, in parallel pieces of one element."""

    def step(b: Builder, i: Value, x: Value, out: Value) -> None:
        v = b.load(x, i)
        block = b.block([INDEX, v.type], lambda q, k, s: q.add(q.mul(s, 0.999), q.cast(k, dtype="f32")))
        b.store(out, b.emit("for", b.index(0), b.index(1000), b.index(1), v, blocks=[block])[0], i)

    return program(["f32[N]", "f32[N]"], 1, each(symbol("N"), step, parallel=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    p = heavy()
    x = np.random.default_rng(0).normal(size=5000).astype("f")
    results = []
    for threads in (1, 2, 3, 8):
        with config.override(num_threads=threads):
            results += [p(x) for _ in range(20)]
    assert pool._workers >= 2
    for r in results[1:]:
        np.testing.assert_array_equal(r.view(np.uint32), results[0].view(np.uint32))


def test_every_index_runs_once() -> None:
    """`out` counts how often each index ran; sizes around the chunk borders."""

    def step(b: Builder, i: Value, x: Value, out: Value) -> None:
        b.store(out, b.add(b.load(out, i), b.load(x)), i)

    p = program(
        ["i32", "i32[N]", "i32[N]"],
        2,
        lambda b, x, n, out: each(symbol("N"), lambda q, i: step(q, i, x, out), parallel=True)(b),
    )
    with config.override(num_threads=4):
        for n in [0, 1, 2, 3, 15, 16, 17, 1000, 4097]:
            out = np.zeros(n, np.int32)
            for k in range(5):
                p(np.int32(1), np.zeros(n, np.int32), out=out)
                assert (out == k + 1).all()


def test_concurrent_callers() -> None:
    """Python threads share a program: each has its arena, and whoever finds the pool busy runs alone."""
    mems = ["f32[N]", "f32[N]"]

    def host(b: Builder, x: Value, out: Value, arena: Value) -> None:
        t = b.view(arena, type=x.type, offset=0)
        b.emit("launch", x, t, callee="kernel")
        b.emit("launch", t, out, callee="kernel")

    kernel = build_func(
        "kernel",
        [parse_type("&" + t) for t in mems],
        each(symbol("N"), lambda b, i, x, o: b.store(o, b.add(b.load(x, i), 1.0), i), parallel=True),
        level="kernel",
    )
    f = build_func(
        "main",
        [*[parse_type("&" + t) for t in mems], parse_type("&u8[N*4]")],
        host,
        level="host",
        inputs=1,
        arena=symbol("N") * 4,
    )
    code = compile_cpu(Module("m", {"main": f, "kernel": kernel}), parse_target("cpu"))
    p = Program(code.spec, code.object, code.constants)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x = rng.normal(size=int(rng.integers(1, 4000))).astype("f")
            if not np.array_equal(p(x), x + 1 + 1):
                wrong.append(seed)

    with config.override(num_threads=3):
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_a_forked_child_works_and_so_does_the_parent() -> None:
    p = heavy()
    x = np.arange(500, dtype="f")
    with config.override(num_threads=3):
        want = p(x)
        child = os.fork()
        if child == 0:  # the child answers by its exit status only
            good = pool._workers == 0 and np.array_equal(p(x), want) and pool._workers > 0
            os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        np.testing.assert_array_equal(p(x), want)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=120)


def test_a_process_with_workers_ends_cleanly(tmp_path: Path) -> None:
    code = build(
        ["f32[N]", "f32[N]"], 1, each(symbol("N"), lambda b, i, x, o: b.store(o, b.load(x, i), i), parallel=True)
    )
    write_artifact(tmp_path / "p.fxb", [Part(code.spec, code.object)])
    script = f"""
import numpy as np
from fluxir import config
from fluxir.runtime.program import Program
p = Program.load({str(tmp_path / "p.fxb")!r})
with config.override(num_threads=4):
    for _ in range(50): p(np.zeros(10000, np.float32))
"""
    for _ in range(3):
        done = run_python(script)
        assert done.returncode == 0 and not done.stderr, done.stderr


# ---- artifacts ------------------------------------------------------------------------------------------------------


def with_constants() -> Any:
    table = np.arange(4, dtype=np.float64)
    small = np.array([1, 2], ml_dtypes.bfloat16)

    def host(b: Builder, x: Value, out: Value, other: Value) -> None:
        b.emit("launch", x, b.constant(value=table), out, callee="kernel")
        b.copy(other, b.constant(value=small))

    types = [parse_type(t) for t in ("&f64[4]", "&f64[4]", "&bf16[2]")]
    kernel = build_func(
        "kernel",
        [types[0]] * 3,
        each(4, lambda b, i, x, y, o: b.store(o, b.mul(b.load(x, i), b.load(y, i)), i)),
        level="kernel",
    )
    f = build_func("main", types, host, ["x", "out", "other"], level="host", inputs=1)
    return compile_cpu(Module("m", {"main": f, "kernel": kernel}), parse_target("cpu"))


def test_artifact_round_trip(tmp_path: Path) -> None:
    code = with_constants()
    path = tmp_path / "p.fxb"
    write_artifact(path, [Part(code.spec, code.object, code.constants)], {"program.fx": "module @m\n"})
    assert path.read_bytes() == artifact_bytes(
        code.spec, code.object, code.constants, {"program.fx": b"module @m\n"}
    ), "same arguments, same bytes"
    assert [f.name for f in tmp_path.iterdir()] == ["p.fxb"]
    a = read_artifact(path)
    assert a.spec == code.spec and a.code == code.object and a.texts == {"program.fx": b"module @m\n"}
    x = np.array([1.0, 2, 3, 4])
    for p in (Program.load(path), Program.load(str(path)), Program.load(path.read_bytes())):
        out, other = p(x)
        np.testing.assert_array_equal(out, x * np.arange(4))
        np.testing.assert_array_equal(other, np.array([1, 2], ml_dtypes.bfloat16))
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None and all(i.compress_type == zipfile.ZIP_STORED for i in z.infolist())


def test_every_damaged_byte_is_found() -> None:
    code = with_constants()
    data = artifact_bytes(code.spec, code.object, code.constants)
    rng = np.random.default_rng(0)
    codes = set()
    for at in [0, 10, len(data) - 1, len(data) - 70, *rng.integers(0, len(data), 150).tolist()]:
        hurt = bytearray(data)
        hurt[at] ^= 1 << int(rng.integers(8))
        try:
            a = read_artifact(bytes(hurt))
        except FluxError as e:
            codes.add(e.code)
        else:  # a byte of the archive's own bookkeeping, such as a date
            assert a.spec == code.spec and a.code == code.object
            assert all(np.array_equal(x, y) for x, y in zip(a.constants, code.constants, strict=True))
    assert codes == {"FX0801"}
    for cut in (0, 1, 30, len(data) // 2, len(data) - 1):
        assert caught(lambda c=cut: read_artifact(data[:c])).code == "FX0801"


def test_other_files_and_versions(tmp_path: Path) -> None:
    assert caught(lambda: read_artifact(tmp_path / "none.fxb")).code == "FX0803"
    assert caught(lambda: read_artifact(tmp_path)).code == "FX0803"
    code = with_constants()
    assert (
        caught(lambda: write_artifact(tmp_path / "no" / "p.fxb", [Part(code.spec, code.object, code.constants)])).code
        == "FX0804"
    )
    write_artifact(tmp_path / "p.fxb", [Part(code.spec, code.object, code.constants)])
    with config.override(max_file_size=100):
        assert caught(lambda: read_artifact(tmp_path / "p.fxb")).code == "FX0803"
    import fluxir.runtime.artifact as module

    newer = module.FORMAT + 1
    original, module.FORMAT = module.FORMAT, newer
    try:
        data = artifact_bytes(code.spec, code.object, code.constants)
    finally:
        module.FORMAT = original
    assert caught(lambda: read_artifact(data)).code == "FX0802"


def test_a_program_for_another_machine_is_refused() -> None:
    code = with_constants()
    spec = {**code.spec, "target": {**code.spec["target"], "name": "cpu:x86-64-v9", "features": ["sse2", "avx99"]}}
    e = caught(lambda: Program(spec, code.object, code.constants))
    assert e.code == "FX0509" and "avx99" in e.message and "sse2," not in e.message
    spec = {**code.spec, "target": {**code.spec["target"], "kind": "nvptx", "name": "sm_90"}}
    assert caught(lambda: Program(spec, code.object, code.constants)).code == "FX0707"


def test_running_an_artifact_imports_no_compiler(tmp_path: Path) -> None:
    code = with_constants()
    write_artifact(tmp_path / "p.fxb", [Part(code.spec, code.object, code.constants)])
    adder()(X, X)  # the runtime's own code is in the cache of this test run from here on
    done = run_python(f"""
import sys
from fluxir.runtime.program import Program
import numpy as np
print(Program.load({str(tmp_path / "p.fxb")!r})(np.ones(4))[0].tolist())
rooms = ("ir", "ops", "frontend", "passes", "schedule", "codegen", "driver")
print([m for m in sys.modules if m.startswith("llvmlite") or m.startswith(tuple(f"fluxir.{{r}}" for r in rooms))])
""")
    assert done.stdout.split("\n")[:2] == ["[0.0, 1.0, 2.0, 3.0]", "[]"], done.stdout + done.stderr


# ---- the loader -----------------------------------------------------------------------------------------------------


def assemble(text: str, reloc: str = "pic") -> bytes:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        opt=2, reloc=reloc, codemodel="small"
    )
    return bytes(machine.emit_object(llvm.parse_assembly(text)))


def test_loader_resolves_data_tables_and_the_c_library() -> None:
    """A writable global, a table of function addresses (64-bit relocations), constants, memset from libc."""
    code = elf.load_object(assemble("""
@count = internal global i64 40
@zeros = internal global [300 x i64] zeroinitializer
@table = internal constant [2 x ptr] [ptr @one, ptr @two]
@weights = internal constant [4 x double] [double 1.0, double 2.5, double 3.5, double 4.5]
declare ptr @memset(ptr, i32, i64)
define internal i64 @one() noinline { ret i64 1 }
define internal i64 @two() noinline { ret i64 2 }
define i64 @run(i64 %k, i64 %i, ptr %out) {
  %p = getelementptr [2 x ptr], ptr @table, i64 0, i64 %k
  %f = load volatile ptr, ptr %p
  %r = call i64 %f()
  %c = load i64, ptr @count
  %n = add i64 %c, 1
  store i64 %n, ptr @count
  %q = getelementptr [4 x double], ptr @weights, i64 0, i64 %i
  %w = load double, ptr %q
  store double %w, ptr %out
  %m = call ptr @memset(ptr @zeros, i32 1, i64 2400)
  %z = load i64, ptr getelementptr inbounds ([300 x i64], ptr @zeros, i64 0, i64 299)
  %low = and i64 %z, 255
  %s = add i64 %n, %low
  %t = mul i64 %r, 1000
  %u = add i64 %s, %t
  ret i64 %u
}
"""))  # fmt: skip
    out = ctypes.c_double()
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(code.address("run"))
    assert [run(0, 2, ctypes.addressof(out)), run(1, 3, ctypes.addressof(out))] == [1042, 2043] and out.value == 4.5
    assert caught(lambda: code.address("walk")).code == "FX0514"


def test_loader_refuses_what_it_cannot_place() -> None:
    e = caught(
        lambda: elf.load_object(
            assemble(
                "declare i32 @no_such_function_anywhere()\ndefine i32 @f() { %r = call i32 @no_such_function_anywhere()\n ret i32 %r }"
            )
        )
    )
    assert e.code == "FX0514" and "no_such_function_anywhere" in e.message
    good = assemble("define i32 @f() { ret i32 1 }")
    for bad in (b"", b"text", good[:10], b"\x7fELF\x01" + good[5:], good[:18] + b"\xb7" + good[19:], good[:80]):
        assert caught(lambda b=bad: elf.load_object(b)).code == "FX0514"
    thread_local = assemble("@t = thread_local global i32 5\ndefine i32 @f() { %r = load i32, ptr @t\n ret i32 %r }")
    assert caught(lambda: elf.load_object(thread_local)).code == "FX0514"


def test_code_is_not_writable() -> None:
    code = elf.load_object(assemble("define i32 @f() { ret i32 1 }"))
    at = code.address("f")
    with open("/proc/self/maps", encoding="ascii") as file:
        rows = [line.split() for line in file]
    (rights,) = [r[1] for r in rows if int(r[0].split("-")[0], 16) <= at < int(r[0].split("-")[1], 16)]
    assert rights.startswith("r-x")


# ---- size expressions -----------------------------------------------------------------------------------------------


def test_sizes_agree_with_the_compiler_s() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (symbol(n) for n in "ABC")
    for _ in range(200):
        d: Any = int(rng.integers(-5, 6))
        for _ in range(int(rng.integers(1, 6))):
            other = [a, b, c, 1, 7, a * b, b + 3][int(rng.integers(7))]
            match int(rng.integers(6)):
                case 0:
                    d = d + other
                case 1:
                    d = d - other
                case 2:
                    d = d * other
                case 3:
                    d = dims.floordiv(d, other)
                case 4:
                    d = dims.maximum(d, other)
                case _:
                    d = dims.minimum(d, other)
        env = {n: int(rng.integers(1, 50)) for n in "ABC"}
        text = d if isinstance(d, int) else str(d)
        assert sizes.evaluate(text, env) == dims.evaluate(d, env), text
        assert sizes.names(text) == frozenset(dims.symbols_of(d))


def test_size_text_from_strangers() -> None:
    for bad in ("", "A+", "(A", "A B", "1..2", "__import__('os')", "max(A)", "((((" * 100, "A/2", "-" * 1000 + "A"):
        assert caught(lambda b=bad: sizes.evaluate(b, {"A": 1, "B": 2})).code == "FX0802", bad
    assert sizes.evaluate("A % 3 - -2*(B//2)", {"A": 7, "B": 5}) == 5
    assert caught(lambda: sizes.evaluate("A//B", {"A": 1, "B": 0})).code == "FX0604"
    assert caught(lambda: sizes.evaluate("A+Z", {"A": 1})).code == "FX0604"
