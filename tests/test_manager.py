"""The pass manager: pipelines in text, dumps and going on from them, verification, and what a failing pass leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir.ops
import fluxir.passes  # noqa: F401  declares ops and passes
from fluxir.errors import FluxError, InternalError, NumericMismatch, error
from fluxir.ir.build import build_func
from fluxir.ir.core import Attrs, Block, Func, Module, Op
from fluxir.ir.dims import INF, Facts, symbol
from fluxir.ir.parser import parse_module, read_module
from fluxir.ir.printer import print_module
from fluxir.ir.types import tensor
from fluxir.passes import manager, numeric
from fluxir.passes.manager import PASSES, PassContext, PassManager, parse_pipeline, pass_, resume_point
from fluxir.passes.reproducer import replay, write_reproducer
from fluxir.schedule import lower
from fluxir.target import parse_target
from tests.programs import random_program

PROGRAM = """module @m
dims B >= 1
func @f(%x: f32[B,4], %w: f32[4]) -> (sum: f32[B,4]) {
  %0 = add(%x, %w) : f32[B,4]
  %1 = add(%x, %w) : f32[B,4]
  %2 = mul(%0, %1) : f32[B,4]
  %3 = neg(%2) : f32[B,4]
  %4 = exp(%3) : f32[B,4]
  %5 = add(%2, %w) : f32[B,4]
  return %5
}
"""


@pytest.fixture
def module() -> Module:
    return parse_module(PROGRAM)


def with_defect(func: Func, old: str, new: str, attrs: Attrs | None = None) -> Func:
    """The function with every op `old` made an op `new`, with the types it had."""
    from fluxir.ir.opdef import REGISTRY

    env: dict[Any, Any] = {}
    ops = []
    for o in func.ops:
        defn = REGISTRY[new] if o.name == old else o.defn
        op = Op(
            defn,
            [env.get(v, v) for v in o.operands],
            o.attrs if attrs is None else attrs,
            o.blocks,
            o.loc,
            [r.type for r in o.results],
        )
        env.update(zip(o.results, op.results, strict=True))
        ops.append(op)
    return func.with_block(Block(func.args, ops, [env.get(v, v) for v in func.outs]))


@pytest.fixture
def passes() -> Iterator[None]:
    """Deliberately broken passes, registered for one test."""
    known = dict(PASSES)

    @pass_("test-wrong")
    def wrong(func: Func, cx: PassContext) -> Func:
        """Adds become subtractions."""
        return with_defect(func, "add", "sub")

    @pass_("test-crash")
    def crash(
        func: Func, cx: PassContext, *, depth: int = 1, loud: bool = False, scale: float = 1.0, label: str = ""
    ) -> Func:
        """Fails."""
        raise ZeroDivisionError(f"depth {depth} loud {loud} scale {scale} label {label}")

    @pass_("test-invalid")
    def invalid(func: Func, cx: PassContext) -> Func:
        """Gives an op an attribute that it does not have."""
        return with_defect(func, "add", "sub", Attrs(colour=3))

    @pass_("test-user-error")
    def user_error(func: Func, cx: PassContext) -> Func:
        """Says that the program is wrong."""
        raise error("FX0406", "no derivative")

    yield
    PASSES.clear()
    PASSES.update(known)


# ---- pipelines ----------------------------------------------------------------------------------------------------------


def test_pipelines_are_text(passes: None) -> None:
    steps = parse_pipeline(" cse , test-crash[depth=3, loud=true, scale=0.5, label=a b] ,dce")
    assert [s.info.name for s in steps] == ["cse", "test-crash", "dce"]
    assert steps[1].options == {"depth": 3, "loud": True, "scale": 0.5, "label": "a b"}
    again = parse_pipeline(",".join(map(str, steps)))
    assert [s.options for s in again] == [s.options for s in steps]
    assert parse_pipeline("") == [] and len(parse_pipeline(["cse", "dce"])) == 2


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("cse,simplfy,dce", "FX0401", "no pass named 'simplfy'"),
        ("fues", "FX0401", "did you mean fuse?"),
        ("fuse[max_op=3]", "FX0402", "no option 'max_op=3'"),
        ("fuse[max_ops=three]", "FX0402", "must be int, not 'three'"),
        ("fuse[multi_output=maybe]", "FX0402", "must be bool"),
        ("fuse[max_ops", "FX0402", "do not end with ']'"),
        ("fuse[max_ops]", "FX0402", "no option 'max_ops'"),
        ("cse[x=1]", "FX0402", "options and defaults: none"),
    ],
)
def test_wrong_pipelines(text: str, code: str, words: str) -> None:
    with pytest.raises(FluxError) as e:
        parse_pipeline(text)
    assert e.value.code == code and words in e.value.render()


def test_a_pass_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        pass_("cse")(lambda func, cx: func)


def test_every_pass_says_what_it_does() -> None:
    for info in PASSES.values():
        assert len(info.doc.split()) >= 4, f"{info.name} has no description"
        assert info.level in ("tensor", "kernel", "host", "any") and info.scope in ("func", "module")


def test_unchanged_is_identity(module: Module) -> None:
    once = PassManager("cse,dce").run(module)
    twice = PassManager("cse,dce")
    assert twice.run(once) is once
    assert [r.changed for r in twice.records] == [False, False]


def test_records(module: Module) -> None:
    pm = PassManager("cse,dce,dce")
    out = pm.run(module)
    assert [(r.index, r.name, r.changed) for r in pm.records] == [(1, "cse", True), (2, "dce", True), (3, "dce", False)]
    assert [(r.ops_before, r.ops_after) for r in pm.records] == [(6, 5), (5, 3), (3, 3)]
    assert pm.records[0].rules == {"cse": 1} and pm.records[-1].after is out
    assert module.entry.op_count == 6  # the input is untouched


# ---- dumps --------------------------------------------------------------------------------------------------------------


def test_dumps_and_index(module: Module, tmp_path: Path) -> None:
    out = PassManager("cse,fuse[max_ops=8],dce", dump_dir=tmp_path).run(module)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00-input.fx",
        "01-cse.fx",
        "02-fuse.fx",
        "03-dce.fx",
        "index.json",
    ]
    assert (tmp_path / "03-dce.fx").read_text() == print_module(out)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["pipeline"] == ["cse", "fuse[max_ops=8]", "dce"]
    assert [r["index"] for r in index["passes"]] == [1, 2, 3]
    assert index["passes"][0]["rules"] == {"cse": 1} and index["passes"][0]["ms"] >= 0


def test_managers_share_an_index(module: Module, tmp_path: Path) -> None:
    m = PassManager("cse,dce", dump_dir=tmp_path).run(module)
    PassManager("fuse", dump_dir=tmp_path, start=2).run(m)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["pipeline"] == ["cse", "dce", "fuse"]
    assert [(r["index"], r["pass"]) for r in index["passes"]] == [(1, "cse"), (2, "dce"), (3, "fuse")]


def test_a_dump_folder_holds_one_compilation(module: Module, tmp_path: Path) -> None:
    PassManager("cse,fuse,dce,cse", dump_dir=tmp_path).run(module)
    for name in ("k00-old.loop.fx", "module.s", "plan.txt", "notes.txt", "my.fx", "reproduce_x.fx"):
        (tmp_path / name).write_text("")
    PassManager("dce", dump_dir=tmp_path).run(module)
    kept = {"notes.txt", "my.fx", "reproduce_x.fx"}
    assert {p.name for p in tmp_path.iterdir()} == {"00-input.fx", "01-dce.fx", "index.json"} | kept
    m = PassManager("cse,fuse,dce", dump_dir=tmp_path).run(module)
    (tmp_path / "loops.fx").write_text("")
    PassManager("cse", dump_dir=tmp_path, start=1).run(m)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"00-input.fx", "01-cse.fx", "02-cse.fx", "loops.fx", "index.json"} | kept


def test_a_folder_that_is_not_ours_keeps_its_files(module: Module, tmp_path: Path) -> None:
    (tmp_path / "03-fuse.fx").write_text("mine")
    (tmp_path / "plan.txt").write_text("mine")
    PassManager("dce", dump_dir=tmp_path).run(module)
    assert (tmp_path / "03-fuse.fx").read_text() == (tmp_path / "plan.txt").read_text() == "mine"


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_going_on_from_a_dump_gives_the_same_program(module: Module, tmp_path: Path, index: int) -> None:
    pm = PassManager("cse,dce,fuse[max_ops=8]", dump_dir=tmp_path)
    final = pm.run(module)
    names = ["00-input.fx", "01-cse.fx", "02-dce.fx", "03-fuse.fx"]
    point = resume_point(tmp_path / names[index])
    assert point.index == index
    assert point.remaining == ",".join(["cse", "dce", "fuse[max_ops=8]"][index:])
    out = PassManager(point.remaining, start=point.index, dump_dir=tmp_path).run(point.module)
    assert print_module(out) == print_module(final)
    assert json.loads((tmp_path / "index.json").read_text())["pipeline"] == ["cse", "dce", "fuse[max_ops=8]"]


def test_going_on_from_an_edited_dump(module: Module, tmp_path: Path) -> None:
    PassManager("cse,dce,fuse", dump_dir=tmp_path).run(module)
    path = tmp_path / "02-dce.fx"
    path.write_text("# edited\n" + path.read_text().replace("mul(", "sub("))
    point = resume_point(path)
    out = PassManager(point.remaining).run(point.module)
    assert "sub(" in print_module(out) and "mul(" not in print_module(out)


def test_what_remains_ends_where_the_level_changes(module: Module, tmp_path: Path) -> None:
    PassManager("cse,dce,plan", dump_dir=tmp_path).run(module)
    assert resume_point(tmp_path / "01-cse.fx").remaining == "dce"


def test_files_that_nothing_can_go_on_from(module: Module, tmp_path: Path) -> None:
    PassManager("cse", dump_dir=tmp_path).run(module)
    (tmp_path / "k01-add.loop.fx").write_text("")
    (tmp_path / "02-fuse.fx").write_text(PROGRAM)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "01-cse.fx").write_text(PROGRAM)
    for name in ("k01-add.loop.fx", "02-fuse.fx", "empty/01-cse.fx", "plan.txt"):
        with pytest.raises(FluxError, match="FX0409"):
            resume_point(tmp_path / name)
    (tmp_path / "index.json").write_text('{"passes": 3}')
    with pytest.raises(FluxError, match="FX0409"):
        resume_point(tmp_path / "01-cse.fx")


# ---- verification -------------------------------------------------------------------------------------------------------


def test_a_pass_that_changes_the_answer_is_named(module: Module, passes: None, tmp_path: Path) -> None:
    PassManager("cse,test-wrong,dce", verify="changed").run(module)  # well formed: only the numbers tell
    with pytest.raises(NumericMismatch) as e:
        PassManager("cse,test-wrong,dce", verify="numeric", dump_dir=tmp_path).run(module)
    text = e.value.render()
    assert e.value.code == "FX0404" and "the pass test-wrong changed the answer of @f: sum[" in text
    assert "elements differ" in text and "x: float32[" in text
    (test,) = tmp_path.glob("test_*.py")
    assert f"reproducer: {test}" in text
    with pytest.raises(NumericMismatch, match="test-wrong changed the answer"):
        replay(next(tmp_path.glob("reproduce_*.fx")), "test-wrong", verify="numeric")


def test_correct_passes_pass_the_numeric_check(module: Module) -> None:
    pm = PassManager("cse,dce,expand,fuse,dce", verify="numeric")
    pm.run(module)
    assert sum(r.changed for r in pm.records) >= 3


def test_a_pass_that_breaks_the_program(module: Module, passes: None, tmp_path: Path) -> None:
    with pytest.raises(InternalError) as e:
        PassManager("cse,test-invalid", dump_dir=tmp_path).run(module)
    text = e.value.render()
    assert e.value.code == "FX0403" and "test-invalid broke the program" in text and "FX0106" in text
    assert list(tmp_path.glob("test_reproduce_test_invalid_*.py"))
    assert PassManager("test-invalid", verify="off").run(module) is not module


def test_a_users_mistake_passes_through(module: Module, passes: None, tmp_path: Path) -> None:
    with pytest.raises(FluxError) as e:
        PassManager("test-user-error", dump_dir=tmp_path).run(module)
    assert e.value.code == "FX0406" and "while running the pass test-user-error" in e.value.render()
    assert not list(tmp_path.glob("test_*"))


# ---- reproducers ----------------------------------------------------------------------------------------------------------

BROKEN = '''
from fluxir.passes.manager import pass_


@pass_("{name}")
def broken(func, cx, *, depth: int = 1):
    """Fails on programs with a product."""
    if any(op.name == "mul" for op in func.ops):
        raise RuntimeError(f"a product at depth {{depth}}")
    return func
'''


def test_a_crash_leaves_a_test_that_fails_alike(module: Module, tmp_path: Path) -> None:
    """The written test, run by a pytest of its own, fails with the same exception; with the pass mended it passes."""
    source = tmp_path / "broken_pass_for_test.py"
    source.write_text(BROKEN.format(name="test-broken"))
    known = dict(PASSES)
    sys.path.insert(0, str(tmp_path))
    try:
        __import__("broken_pass_for_test")
        with pytest.raises(InternalError) as e:
            PassManager("cse,test-broken[depth=7],dce", dump_dir=tmp_path / "dump").run(module)
    finally:
        sys.path.remove(str(tmp_path))
        PASSES.clear()
        PASSES.update(known)
    assert e.value.code == "FX0499" and "RuntimeError: a product at depth 7" in e.value.render()
    (test,) = (tmp_path / "dump").glob("test_*.py")
    assert str(test) in e.value.render()
    program = next((tmp_path / "dump").glob("reproduce_*.fx"))
    assert read_module(program, locate=False).digest == PassManager("cse").run(module).digest

    first = run_pytest(test)
    assert first.returncode == 1 and "RuntimeError: a product at depth 7" in first.stdout
    source.write_text(BROKEN.format(name="test-broken").replace('"mul"', '"no such op"'))
    assert run_pytest(test).returncode == 0


def run_pytest(test: Path) -> Any:
    root = Path(__file__).resolve().parent.parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(test.parent),
        "-c",
        "/dev/null",
        str(test),
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )


def test_reproducers_without_a_directory_and_of_odd_text(module: Module) -> None:
    path = write_reproducer(module, "cse", ValueError('a "quoted" \\ message\nof two lines'))
    text = path.read_text()
    compile(text, str(path), "exec")
    assert "a 'quoted' / message" in text and "two lines" not in text
    namespace: dict[str, Any] = {"__file__": str(path)}
    exec(text, namespace)
    next(f for n, f in namespace.items() if n.startswith("test_"))()  # cse does not fail


def test_a_failing_reproducer_does_not_hide_the_failure(module: Module, passes: None, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    pm = PassManager("test-crash")
    pm.dump_dir = blocked / "below"
    pm.dump = pm.write_index = lambda *a: None  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="ZeroDivisionError") as e:
        pm.run(module)
    assert "no reproducer could be written" in e.value.render()


# ---- comparing --------------------------------------------------------------------------------------------------------------


def func_module(body: Any, *types: str, facts: Facts | None = None) -> Module:
    return Module("m", {"f": build_func("f", [tensor(t) for t in types], body)}, facts or Facts())


def test_the_worst_element_is_named() -> None:
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "f")
    a = func_module(lambda b, x: b.add(x, 0.0), "f32[2,2]")
    b = func_module(lambda b, x: b.add(x, np.array([[0, 0.5], [0, -2]], "f")), "f32[2,2]")
    with pytest.raises(FluxError, match=r"result 0\[1, 1\] was 4.0 and is 2.0 \(2 of 4 elements differ\)"):
        numeric.compare(a, b, "p", inputs=[x], sizes={}, reproduce=False)
    numeric.compare(a, func_module(lambda b, x: b.add(x, 1e-6), "f32[2,2]"), "p", inputs=[x], sizes={}, reproduce=False)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64", "i8", "i32", "u8", "u64", "bool"])
def test_every_type_is_compared(dtype: str) -> None:
    same = func_module(lambda b, x: x, f"{dtype}[5]")
    other = func_module(
        (lambda b, x: b.logical_not(x)) if dtype == "bool" else (lambda b, x: b.add(x, 1)), f"{dtype}[5]"
    )
    numeric.compare(same, same, "p")
    with pytest.raises(FluxError, match="FX0404"):
        numeric.compare(same, other, "p", reproduce=False)


def test_nan_and_infinity_are_values() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0, -0.0])
    assert numeric.difference(values, values.copy(), None, "r") is None
    for i, x in [(0, 1.0), (1, np.nan), (2, np.inf), (3, np.nan), (3, np.inf)]:
        changed = values.copy()
        changed[i] = x
        assert f"r[{i}]" in str(numeric.difference(values, changed, None, "r"))
    assert numeric.difference(np.zeros((0, 3)), np.zeros((0, 3)), None, "r") is None
    assert "was float64[0, 3] and is float64[0, 2]" in str(
        numeric.difference(np.zeros((0, 3)), np.zeros((0, 2)), None, "r")
    )


@pytest.mark.parametrize(
    ("facts", "types"),
    [
        (Facts({"B": (1, INF)}), ["f32[B,4]"]),
        (Facts({"B": (5, 5)}), ["f32[B,4]"]),
        (Facts({"B": (100, 120)}, {"B": 16}), ["f32[B,4]"]),
        (Facts({}, {"T": 8}), ["f32[T//8,T]"]),
        (Facts(equations=((symbol("M"), symbol("N") * 2 + 1),)), ["f32[M]", "f32[N]"]),
        (Facts(equations=((symbol("M") + symbol("N"), symbol("K")), (symbol("K"), 7))), ["f32[M]", "f32[N]", "f32[K]"]),
        (Facts(), ["f32[B-3]", "f32[10-B]", "f32[B]"]),
    ],
)
def test_sizes_satisfy_the_facts(facts: Facts, types: list[str]) -> None:
    m = func_module(lambda b, *xs: xs[0], *types, facts=facts)
    for seed in range(5):
        drawn = numeric.draw(m, seed=seed)
        out = numeric.run(m, m.entry, drawn.arrays, drawn.sizes)
        assert out[0].shape == drawn.arrays[0].shape


def test_facts_that_no_sizes_satisfy() -> None:
    m = func_module(lambda b, x: x, "f32[B]", facts=Facts({"B": (3, 5)}, {"B": 64}))
    with pytest.raises(FluxError, match="FX0604"):
        numeric.draw(m)


def lowered(seed: int) -> Module:
    from fluxir.ir.dims import assuming

    m = PassManager("expand,cse,dce,fuse,dce").run(random_program(seed, ops=6, control=False).module)
    with assuming(m.facts):
        return lower(m, parse_target("cpu"))


@pytest.mark.parametrize("seed", [0, 3])
def test_host_programs_are_compared(seed: int) -> None:
    before = lowered(seed)
    pm = PassManager("plan", verify="numeric")
    after = pm.run(before)
    assert pm.records[0].changed and "arena" in after.entry.attrs


HOST = """module @m
host @main(%x: &f32[4], %out: &f32[4]) [inputs=1] {
  %0 = alloc [type=!&f32[4]] : &f32[4]
  launch(%x, %0) [callee="neg"]
  %1 = alloc [type=!&f32[4]] : &f32[4]
  launch(%x, %1) [callee="neg"]
  launch(%0, %1, %out) [callee="sum"]
  return
}
kernel @neg(%x: &f32[4], %out: &f32[4]) {
  %0 = const [value=dense<i64: 0>] : i64
  %1 = const [value=dense<i64: 4>] : i64
  %2 = const [value=dense<i64: 1>] : i64
  for(%0, %1, %2) {
    (%i: i64) ->
    %3 = load(%x, %i) : f32
    %4 = neg(%3) : f32
    store(%out, %4, %i)
  }
  return
}
kernel @sum(%x: &f32[4], %y: &f32[4], %out: &f32[4]) {
  %0 = const [value=dense<i64: 0>] : i64
  %1 = const [value=dense<i64: 4>] : i64
  %2 = const [value=dense<i64: 1>] : i64
  for(%0, %1, %2) {
    (%i: i64) ->
    %3 = load(%x, %i) : f32
    %4 = load(%y, %i) : f32
    %5 = sub(%3, %4) : f32
    store(%out, %5, %i)
  }
  return
}
"""


@pytest.mark.parametrize("max_steps", [100_000, 12])
def test_a_wrong_memory_plan_is_found(max_steps: int) -> None:
    """Two live buffers in one place: by real execution, and by stand-ins where that takes too long."""
    neg = HOST[HOST.index("kernel @neg") : HOST.index("kernel @sum")]
    text = HOST.replace('launch(%x, %1) [callee="neg"]', 'launch(%x, %1) [callee="exp"]') + neg.replace(
        "@neg", "@exp"
    ).replace("neg(%3)", "exp(%3)")
    different = parse_module(text)
    planned = print_module(PassManager("plan").run(different))
    numeric.compare(different, parse_module(planned), "plan", max_steps=max_steps)
    overlapping = parse_module(planned.replace("offset=64", "offset=0"))
    assert print_module(overlapping) != planned
    with pytest.raises(FluxError, match="FX0404"):
        numeric.compare(different, overlapping, "plan", max_steps=max_steps, reproduce=False)


def test_a_comparison_has_an_end() -> None:
    m = parse_module(HOST)
    with pytest.raises(FluxError, match="FX0109"):
        numeric.compare(m, m, "p", max_steps=2)


def test_lowering_is_compared_across_levels() -> None:
    p = random_program(5, ops=6, control=False)
    m = PassManager("expand,cse,dce,fuse,dce").run(p.module)
    numeric.compare(m, lowered(5), "lower", sizes=p.sizes, inputs=p.arrays, reproduce=False)


def test_index_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(FluxError, match="FX0409"):
        manager.read_index(tmp_path / "index.json")
