"""The virtual GPU as a device like any other: its names, programs on it, what the sanitizer finds in them, memory, threads."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config, driver
from fluxir.errors import FluxError
from fluxir.runtime.devices import load_program, target_of
from fluxir.runtime.launch import GpuProgram
from fluxir.runtime.vgpu import Device
from fluxir.runtime.vgpu.driver import VirtualDriver, shared_device

X = np.linspace(-2, 3, 600, dtype=np.float32).reshape(3, 200)


def model(x: Any) -> Any:
    h = fx.tanh(x) * 2
    return fx.nn.softmax(h, axis=1)


WANT = fx.jit(model)(X)


def failure(f: Any, *args: Any) -> FluxError:
    with pytest.raises(FluxError) as caught:
        f(*args)
    return caught.value


# ---- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "target"), [("vgpu", "sm_90"), ("vgpu:sm_80", "sm_80"), ("vgpu:sm_90a", "sm_90a")])
def test_jit(device: str, target: str) -> None:
    f = fx.jit(model, device=device)
    np.testing.assert_allclose(f(X), WANT, rtol=1e-5)
    np.testing.assert_allclose(f(X), WANT, rtol=1e-5)  # the second call goes the fast way
    (compiled,) = f._programs.values()
    assert compiled.target.name == target == target_of(device)
    assert isinstance(compiled.program.driver, VirtualDriver)
    assert compiled.program.driver.device.target.name == target


def test_the_setting_decides_where_nothing_else_does() -> None:
    f = fx.jit(model)
    for device in ("cpu", "vgpu:sm_80", "cpu", "vgpu"):
        with config.override(device=device):
            np.testing.assert_allclose(f(X), WANT, rtol=1e-5)
            compiled = f.lower(X).compile()
            assert compiled.target.kind == ("cpu" if device == "cpu" else "nvptx")
    assert len(f._programs) == 3


def test_vgpu_is_the_architecture_of_the_program() -> None:
    compiled = fx.jit(model).lower(X).compile("sm_80", device="vgpu")
    np.testing.assert_allclose(compiled(X), WANT, rtol=1e-5)
    assert compiled.program.driver.device.target.name == "sm_80"
    with config.override(target="sm_89", device="vgpu"):
        assert driver.as_target(None).name == "sm_89"


def test_nothing_falls_back() -> None:
    low = fx.jit(model).lower(X)
    assert failure(lambda: low.compile("cpu", device="vgpu").program).code == "FX0707"
    newer = low.compile("sm_90", device="vgpu:sm_80")
    problem = failure(newer, X)
    assert problem.code == "FX0707" and "sm_90" in problem.message
    assert failure(lambda: low.compile("sm_80").program).code == "FX0703"  # the setting says cpu
    assert failure(fx.jit(model, device="gpu"), X).code == "FX0902"
    assert failure(fx.jit(model, device="vgpu:sm_13"), X).code == "FX0501"
    assert failure(config.override(device="vgpu:x").__enter__).code == "FX0902"


def test_an_artifact(tmp_path: Path) -> None:
    path = tmp_path / "model.fxb"
    fx.jit(model).lower(X).compile("sm_80").save(path)
    for device in ("vgpu", "vgpu:sm_90"):
        np.testing.assert_allclose(fx.load(path, device=device)(X), WANT, rtol=1e-5)
    assert failure(fx.load, path).code == "FX0703"
    fx.jit(model).lower(X).compile("cpu").save(path)
    assert failure(fx.load, path, "vgpu").code == "FX0707"
    np.testing.assert_allclose(fx.load(path)(X), WANT, rtol=1e-5)


# ---- findings ---------------------------------------------------------------------------------------------------------


def broken(f: Any, pattern: str, by: str, *args: Any, count: int = 1) -> GpuProgram:
    """The program with a fault planted in its PTX."""
    c = fx.jit(f).lower(*args).compile("sm_80", cache=False)
    text, n = re.subn(pattern, by, c.code.decode())
    assert n >= count, c.code.decode()
    return load_program(c.spec, text.encode(), c.constants, "vgpu")


def scaled(x: Any) -> Any:
    return x * 3  # the line that a finding names


def line_of(text: str) -> int:
    return 1 + next(i for i, s in enumerate(Path(__file__).read_text().splitlines()) if s.strip().startswith(text))


def test_a_bound_too_far() -> None:
    x = np.ones(101, np.float32)
    problem = failure(broken(scaled, r"(setp\.gt\.u64\s+%p\d+, %rd\d+, )100;", r"\g<1>103;", x), x)
    assert problem.code == "FX0708" and "out-of-bounds" in problem.message and "thread (101, 0, 0)" in problem.message
    assert problem.loc is not None and problem.loc.file.endswith("test_vgpu_device.py")
    assert problem.loc.line == line_of("return x * 3")
    assert "the kernel is mul by gpupointwise(" in problem.notes[0] and "PTX line" in problem.notes[1]
    assert "return x * 3  # the line" in problem.render()


def test_a_missing_barrier() -> None:
    x = np.ones((40, 300), np.float32)

    def product(x: Any) -> Any:
        return x @ x.T

    problem = failure(broken(product, r"\tbar(rier)?\.sync[^\n]*\n", "\n", x), x)
    assert problem.code == "FX0709" and "shared-race" in problem.message


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: a @ b, [(40, 50), (50, 30)]),
        (lambda x: fx.nn.softmax(x, axis=1), [(3, 700)]),
        (fx.nn.layer_norm, [(3, 700), (700,), (700,)]),
        (lambda x: fx.sum(x), [(40_000,)]),
    ],
    ids=["dot", "softmax", "layer-norm", "sum"],
)
def test_every_barrier_of_our_kernels_is_needed(f: Any, shapes: list[tuple[int, ...]]) -> None:
    """Without any one of them the race is found."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in shapes]
    c = fx.jit(f).lower(*arrays).compile("sm_80", cache=False)
    text = c.code.decode()
    barriers = list(re.finditer(r"\tbar(rier)?\.[^\n]*\n", text))
    assert barriers
    for found in barriers:
        without = text[: found.start()] + "\n" + text[found.end() :]
        program = load_program(c.spec, without.encode(), c.constants, "vgpu")
        assert failure(program.call_flat, arrays).code == "FX0709"


def test_a_result_that_is_not_written() -> None:
    x = np.ones(101, np.float32)
    problem = failure(broken(scaled, r"(setp\.gt\.u64\s+%p\d+, %rd\d+, )100;", r"\g<1>99;", x), x)
    assert problem.code == "FX0708" and "4 of 404 bytes" in problem.message


def test_a_trap() -> None:
    x = np.ones(101, np.float32)
    problem = failure(broken(scaled, r"\tst\.global", "\ttrap;\n\tst.global", x), x)
    assert problem.code == "FX0714" and "trap" in problem.message


def test_without_the_sanitizer() -> None:
    x = np.ones(101, np.float32)
    p = broken(scaled, r"(setp\.gt\.u64\s+%p\d+, %rd\d+, )100;", r"\g<1>99;", x)
    with config.override(sanitizer=False):
        (got,) = p.call_flat([x])
    assert (got[:100] == 3).all() and got[100] != 3


def test_ptx_that_does_not_load() -> None:
    x = np.ones(101, np.float32)
    assert failure(broken(scaled, r"mul\.(rn\.)?f32", "frob.f32", x), x).code == "FX0710"
    assert failure(broken, scaled, r"\tret;", "\tret {;", x).code == "FX0711"


# ---- memory, threads, profiles ----------------------------------------------------------------------------------------


def test_memory_is_given_back() -> None:
    gpu = shared_device("sm_86")
    assert not gpu.leaks()
    weights = np.ones((200, 50), np.float32)
    compiled = (
        fx.jit(lambda x: fx.tanh(fx.tanh(x @ weights) @ weights.T) @ weights).lower(X).compile(device="vgpu:sm_86")
    )
    for _ in range(3):
        compiled(X)
    held = gpu.heap.used
    compiled(X)
    assert gpu.heap.used == held and gpu.leaks(), "arena and constants stay"
    del compiled
    gc.collect()
    assert not gpu.leaks() and not gpu.heap.used


def test_a_call_that_fails_leaves_nothing() -> None:
    x = np.ones(101, np.float32)
    gpu = Device("sm_80", 1 << 28)
    c = fx.jit(scaled).lower(x).compile("sm_80", cache=False)
    text = re.sub(r"\tst\.global", "\ttrap;\n\tst.global", c.code.decode())
    program = GpuProgram(c.spec, VirtualDriver(c.spec, text, gpu), c.constants)
    for _ in range(2):
        assert failure(program.call_flat, [x]).code == "FX0714"
    assert not gpu.leaks()


def test_threads_share_a_device() -> None:
    f, g = fx.jit(model, device="vgpu:sm_80"), fx.jit(lambda x: fx.sum(x, axis=0), device="vgpu:sm_80")
    f(X), g(X)
    wrong: list[Any] = []

    def work(k: int) -> None:
        for i in range(5):
            x = X * (1 + i + k)
            if not np.allclose(g(x), x.sum(0), rtol=1e-5) or not np.allclose(f(x).sum(1), 1, rtol=1e-5):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_reports_and_profiles() -> None:
    compiled = fx.jit(model).lower(X).compile(device="vgpu:sm_80")
    compiled(X)
    d = compiled.program.driver
    assert d.reports == []
    d.profiling = True
    compiled(X), compiled(X)
    assert len(d.reports) == 2 * len(compiled.spec["kernels"])
    rows = d.profile()
    assert [r.kernel for r in rows] == [k["name"] for k in compiled.spec["kernels"]]
    assert all(r.launches == 2 and "test_vgpu_device.py" in r.source for r in rows)
    once = d.reports[0].counters
    assert rows[0].counters.warp_instructions == 2 * once.warp_instructions
    assert once.requests["global load"] and once.sectors_per_request >= 1
