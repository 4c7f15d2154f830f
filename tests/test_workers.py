"""Kernels translated in processes: the same code as in this process, whatever dies, forks, or is interrupted meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config
from fluxir.codegen import backend, workers
from fluxir.codegen.link import join_objects
from fluxir.codegen.part import Piece
from fluxir.codegen.x86 import compile_cpu
from fluxir.driver import as_target, build
from fluxir.errors import FluxError
from fluxir.runtime.elf import load_object
from fluxir.target import parse_target

MACHINE = backend.machine_of(parse_target("cpu:x86-64-v2"))
GOOD = "define void @code(ptr %p) {\n  store i32 1, ptr %p\n  ret void\n}\n"
CRASH = 'define void @code() {\n  call void asm sideeffect "nop", ""()\n  ret void\n}\n'
"""LLVM aborts on inline assembly where no assembler is loaded."""


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    with config.override(compile_workers=2):
        yield


def model(x, w):  # type: ignore[no-untyped-def]
    return fx.sum(fx.exp(fx.maximum(x @ w, 0)), axis=-1)


def loops(scale: int = 1):  # type: ignore[no-untyped-def]
    lowered = fx.jit(model).lower(fx.f32[8 * scale, 16], fx.f32[16, 24])
    return build(lowered.module, as_target("cpu")).stages["loops"]


def translated(*texts: str) -> list[bytes]:
    with workers.Translation(MACHINE, 2) as t:
        for i, text in enumerate(texts):
            t.add(Piece(f"part{i}", text, ""))
        return t.objects()


def script(text: str, **options) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    return subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "FLUXIR_COMPILE_WORKERS": "2", "FLUXIR_CACHE": "off"}, **options)  # fmt: skip


def test_the_same_bits_in_this_process_and_in_others() -> None:
    module = loops()
    assert workers._pool is not None or translated(GOOD)
    beside = compile_cpu(module, parse_target("cpu"))
    with config.override(compile_workers=0):
        here = compile_cpu(module, parse_target("cpu"))
    assert here.object == beside.object and here.spec == beside.spec


def test_results_come_in_order_and_times_add_up() -> None:
    texts = [GOOD.replace("i32 1", f"i32 {n}") for n in range(20)]
    found = translated(*texts)
    with config.override(compile_workers=0):
        assert found == translated(*texts)
    code = compile_cpu(loops(), parse_target("cpu"))
    assert set(code.seconds) == {"emit", "wait", "link", "parse", "optimise", "codegen"}
    assert code.seconds["codegen"] > 0


def test_a_crash_of_llvm_is_an_error_with_a_reproducer() -> None:
    with workers.Translation(MACHINE, 2) as t:
        for i, text in enumerate([GOOD, CRASH, GOOD, GOOD]):
            t.add(Piece(f"part{i}", text, ""))
        with pytest.raises(FluxError) as e:
            t.objects()
    assert e.value.code == "FX0517" and "part1" in e.value.message and "SIGABRT" in e.value.message
    assert any("Inline asm" in n for n in e.value.notes), e.value.notes
    test = Path(next(n for n in e.value.notes if n.startswith("reproducer: ")).removeprefix("reproducer: "))
    names: dict[str, Any] = {"__file__": str(test), "__name__": "reproducer"}
    exec(compile(test.read_text(), str(test), "exec"), names)
    with pytest.raises(FluxError) as again:
        names[test.stem]()
    assert again.value.code == "FX0517"
    assert len(translated(GOOD)) == 1  # and the next compilation is none the worse


def test_each_of_many_crashes_takes_one_part_alone() -> None:
    with workers.Translation(MACHINE, 2) as t:
        for i in range(9):
            t.add(Piece(f"part{i}", CRASH if i % 3 == 0 else GOOD.replace("i32 1", f"i32 {i}"), ""))
        for task in t.tasks:
            while task.answer is None:
                t._work(task)
    assert [isinstance(task.answer, FluxError) for task in t.tasks] == [i % 3 == 0 for i in range(9)]


def test_text_that_llvm_rejects_is_told_as_in_this_process() -> None:
    errors = []
    for n in (0, 2):
        with config.override(compile_workers=n), pytest.raises(FluxError) as e:
            translated(GOOD, "define void @code() {\n  %x = nonsense i32 1\n  ret void\n}")
        errors.append((e.value.code, e.value.message, e.value.notes))
    assert errors[0] == errors[1] and errors[0][0] == "FX0503"


def test_workers_that_are_killed_are_done_without() -> None:
    want = translated(GOOD)
    pool = workers._pool
    assert pool is not None
    os.killpg(pool.process.pid, signal.SIGKILL)
    assert translated(GOOD) == want


def test_threads_compile_at_once() -> None:
    want = [compile_cpu(loops(n), parse_target("cpu")).object for n in (1, 2, 3)]
    found: dict[int, bytes] = {}

    def work(n: int) -> None:
        with config.override(compile_workers=2):
            found[n] = compile_cpu(loops(n), parse_target("cpu")).object

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found[n] for n in (1, 2, 3)] == want


def test_an_interrupt_leaves_nothing_behind() -> None:
    want = translated(GOOD)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), workers.Translation(MACHINE, 2) as t:
            for i in range(200):
                t.add(Piece(f"part{i}", GOOD.replace("i32 1", f"i32 {i}"), ""))
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            t.objects()
            signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert translated(GOOD) == want


def test_a_program_that_is_no_python_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    want = translated(GOOD)
    workers.stop()
    for name in ("/usr/bin/env", "", "/opt/app/pythonic"):
        monkeypatch.setattr(sys, "executable", name)
        monkeypatch.setattr(workers, "_refused", False)
        assert translated(GOOD) == want
        assert workers._pool is None


def test_the_users_script_runs_once_and_nothing_outlives_it() -> None:
    done = script("""
        import os, numpy as np, fluxir as fx
        from fluxir.codegen import workers
        print("here")
        print(fx.jit(lambda x: x + 1)(np.ones(3, np.float32)))
        print(workers._pool.process.pid)
    """)
    assert done.returncode == 0 and done.stderr == ""
    first, result, pid = done.stdout.splitlines()
    assert (first, result) == ("here", "[2. 2. 2.]")
    assert not Path(f"/proc/{pid}").exists()


def test_the_child_of_a_fork_has_workers_of_its_own() -> None:
    done = script("""
        import os, numpy as np, fluxir as fx
        from fluxir.codegen import workers
        x = np.ones(3, np.float32)
        assert fx.jit(lambda x: x + 1)(x)[0] == 2
        first = workers._pool.process.pid
        if os.fork() == 0:
            assert workers._pool is None
            assert fx.jit(lambda x: x + 2)(x)[0] == 3
            assert workers._pool.process.pid != first
            workers.stop()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
        assert fx.jit(lambda x: x + 3)(x)[0] == 4
        assert workers._pool.process.pid == first
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_end_when_their_program_is_killed() -> None:
    done = script("""
        import os, signal
        import numpy as np, fluxir as fx
        from fluxir.codegen import workers
        fx.jit(lambda x: x + 1)(np.ones(3, np.float32))
        print(workers._pool.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert done.returncode == -signal.SIGKILL
    leader = int(done.stdout)
    for _ in range(1000):
        if not _running(leader):
            return
        threading.Event().wait(0.02)
    pytest.fail("the workers are still there")


def _running(session: int) -> list[int]:
    found = []
    for p in Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                facts = (p / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(facts[3]) == session and facts[0] != "Z":
                found.append(int(p.name))
    return found


def test_idle_workers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    workers.stop()
    monkeypatch.setattr(workers, "_IDLE", 0.05)
    translated(GOOD)
    pool = workers._pool
    for _ in range(500):
        if workers._pool is None:
            break
        threading.Event().wait(0.02)
    assert workers._pool is None and (pool is None or pool.process.returncode is not None)


# ---- joining objects -------------------------------------------------------------------------------------------------


def test_joined_objects_find_each_other() -> None:
    one = "define hidden i32 @code(i32 %x) {\n  %y = mul i32 %x, 3\n  ret i32 %y\n}\n"
    two = "@code.table = internal constant [4 x i32] [i32 5, i32 6, i32 7, i32 8]\n" + (
        "declare hidden i32 @triple(i32)\ndefine i32 @code(i32 %i) {\n"
        "  %p = getelementptr [4 x i32], ptr @code.table, i32 0, i32 %i\n  %v = load i32, ptr %p\n"
        "  %r = call i32 @triple(i32 %v)\n  ret i32 %r\n}\n"
    )
    objects = translated(one, two)
    joined = join_objects([(objects[1], ("code", "f")), (objects[0], ("code", "triple"))])
    import ctypes

    code = load_object(joined)
    f = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(code.address("f"))
    assert [f(i) for i in range(4)] == [15, 18, 21, 24]
    assert "code" not in code.symbols


def test_a_symbol_is_defined_once() -> None:
    (one,) = translated(GOOD)
    with pytest.raises(ValueError, match="same is defined twice"):
        join_objects([(one, ("code", "same"))] * 2)


def test_equal_kernels_of_different_sizes_by_name_are_translated_once() -> None:
    """Kernels that differ in nothing but the names of their size symbols have one text."""

    def f(x, y):  # type: ignore[no-untyped-def]
        return fx.tanh(x), fx.tanh(y)

    lowered = fx.jit(f).lower(fx.f32["B"], fx.f32["N"])
    code = compile_cpu(build(lowered.module, as_target("cpu")).stages["loops"], parse_target("cpu"))
    assert sum(p.name.startswith("kernel.") for p in code.pieces) == 1
    a, b = np.ones(5, np.float32), np.ones(3, np.float32)
    ta, tb = lowered.compile(cache=False)(a, b)
    assert ta.shape == (5,) and tb.shape == (3,)
