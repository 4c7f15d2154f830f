"""GPU programs without a GPU: the launch list runs on a fake device whose kernels are interpreted, and PyCUDA's calls are seen.

What the runtime does for a real device is done in full: sizes, guards, packed parameters, arena, branches, loops, recursion,
sizes known at run time.
"""

from __future__ import annotations

import contextlib
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.ir.interp import interpret
from fluxir.runtime import cuda
from fluxir.runtime.launch import GpuProgram
from tests.gpu_harness import on_fake_device

X = np.array([0.7, -0.4, 1.3], np.float32)


def same(f: Any, *args: Any, rtol: float = 1e-5, **options: Any) -> tuple[GpuProgram, Any]:
    """Run on the fake device and in the interpreter; the program and its device."""
    low = fx.jit(f, **options).lower(*args)
    program, device, _ = on_fake_device(low.module)
    for _ in range(2):  # the second call finds the arena and the constants there
        got = program.call_flat(list(args))
    want = fx.jit(f, **options)(*[np.copy(a) for a in args])
    leaves = want if isinstance(want, tuple) else (want,)
    for a, b in zip(got, leaves, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=1e-6)
    return program, device


def test_a_chain_of_kernels() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 6)).astype(np.float32), rng.standard_normal((6, 7)).astype(np.float32)
    constant = rng.standard_normal(7).astype(np.float32)
    program, device = same(lambda x, w: (fx.exp(x @ w + constant), fx.sum(x, axis=0)), x, w)
    assert len(device.launched) == 2 * len(program.kernels)
    live = sum(device.live.values())
    program.call_flat([x, w])
    assert sum(device.live.values()) == live, "a call gives back what it asked for"


def test_branches_and_loops() -> None:
    @fx.function
    def f(x: Any, n: Any) -> Any:
        h = x
        for _ in range(n):
            if fx.sum(h) > 1:
                h = h * 0.5
            else:
                h = fx.sin(h) + 0.3
        total = fx.scan(lambda c, u: (c + u, c * u), 0.0, h)[1]
        return h, total

    for n in (0, 1, 4):
        same(f, X, np.int64(n))


def test_recursion_has_memory_of_its_own() -> None:
    @fx.function
    def power(x: Any, n: Any) -> Any:
        if n <= 0:
            return fx.ones_like(x)
        return x * power(x, n - 1)

    same(lambda x, n: power(x, n), X, np.int64(4))


def test_the_reverse_of_a_while_loop_reads_its_length_from_the_device() -> None:
    @fx.function
    def f(x: Any) -> Any:
        h = x
        while fx.sum(h * h) > 0.05:
            h = 0.6 * fx.sin(h)
        return fx.sum(h * x)

    program, _ = same(fx.grad(f), X, rtol=1e-4)
    text = str(program.spec["host"])
    assert "'sized': {'N0'" in text


def test_symbolic_sizes_and_guards() -> None:
    f = fx.jit(lambda x: fx.nn.softmax(x, axis=-1) if hasattr(fx.nn, "softmax") else fx.exp(x),
               signature=(fx.f32["B", 4],), facts="B >= 1")  # fmt: skip
    low = f.lower()
    program, _, _ = on_fake_device(low.module)
    for n in (1, 3, 8):
        x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
        np.testing.assert_allclose(program(x), interpret(low.module, [x])[0], rtol=1e-5)
    for bad, code in ((np.zeros((0, 4), np.float32), "FX0604"), (np.zeros((2, 3), np.float32), "FX0602"),
                      (np.zeros((2, 4)), "FX0603")):  # fmt: skip
        with pytest.raises(FluxError) as e:
            program(bad)
        assert e.value.code == code


def test_an_assertion_stops_the_program_and_frees_its_memory() -> None:
    @fx.function
    def f(x: Any) -> Any:
        assert fx.all(x > 0), "only positive numbers"
        return fx.log(x)

    program, device, _ = on_fake_device(fx.jit(f).lower(X).module)
    live = len(device.live)
    with pytest.raises(FluxError, match="only positive numbers") as e:
        program(X)
    assert e.value.code == "FX0608" and len(device.live) <= live + 1  # the arena stays
    np.testing.assert_allclose(program(np.abs(X)), np.log(np.abs(X)), rtol=1e-5)


def test_endless_recursion_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxir.runtime.launch.MAX_DEPTH", 40)

    @fx.function
    def down(x: Any, n: Any) -> Any:
        if n == 0:
            return x
        return down(x + 1, n - 1)

    program, _, _ = on_fake_device(fx.jit(lambda x, n: down(x, n)).lower(X, np.int64(-1)).module)
    with pytest.raises(FluxError) as e:
        program(X, np.int64(-1))
    assert e.value.code == "FX0109"


def test_donated_arguments_are_read_back_from_their_own_memory() -> None:
    program, device = same(lambda x, y: (x + y, x * y), X, X[::-1].copy(), donate_argnums=0)
    assert program.spec["donated"] == [[0, 0]] and device.launched
    before = X.copy()
    program.call_flat([X, X[::-1].copy()])
    np.testing.assert_array_equal(X, before)  # the host's array is not touched


# ---- PyCUDA -----------------------------------------------------------------------------------------------------------------


class Log(list[Any]):
    """Every call of the fake PyCUDA, in order."""


def fake_pycuda(log: Log, capability: tuple[int, int] = (9, 0), room: int = 1 << 20) -> Any:
    """The part of `pycuda.driver` that we use, on host memory."""

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    memory: dict[int, np.ndarray[Any, Any]] = {}

    class Allocation:
        def __init__(self, nbytes: int) -> None:
            if nbytes > room:
                raise OutOfMemory("cuMemAlloc failed: out of memory")
            self.address = 4096 + sum(len(a) + 256 for a in memory.values())
            memory[self.address] = np.zeros(nbytes, np.uint8)
            log.append(("alloc", nbytes))

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            log.append(("free", self.address))

    class Function:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, formats: list[str]) -> None:
            self.size = struct.calcsize(formats[0])

        def prepared_async_call(self, grid: Any, block: Any, stream: Any, parameters: bytes) -> None:
            assert len(parameters) == self.size and len(grid) == len(block) == 3
            log.append(("launch", self.name, grid, block))

    class Context:
        def push(self) -> None:
            log.append("push")

        @staticmethod
        def pop() -> None:
            log.append("pop")

        @staticmethod
        def get_device() -> Any:
            return Device(0)

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        @staticmethod
        def count() -> int:
            return 1

        def compute_capability(self) -> tuple[int, int]:
            return capability

        def name(self) -> str:
            return "Fake GPU"

        def total_memory(self) -> int:
            return room

        multiprocessor_count = 1

        def retain_primary_context(self) -> Context:
            return Context()

    def load(ptx: bytes, message_handler: Any) -> Any:
        assert ptx.endswith(b"\0")
        if b"reject me" in ptx:
            message_handler(False, "", "ptxas: line 1 is no PTX")
            raise Error("device kernel image is invalid")
        return SimpleNamespace(get_function=Function)

    def copied(target: Any, source: Any, stream: Any) -> None:
        log.append("copy")
        if isinstance(target, np.ndarray):
            target[:] = memory[source][: len(target)]
        else:
            memory[target][: len(source)] = source

    stream = SimpleNamespace(synchronize=lambda: log.append("synchronize"))
    return SimpleNamespace(
        Error=Error, MemoryError=OutOfMemory, Context=Context, Device=Device, Stream=lambda: stream, init=lambda: None,
        module_from_buffer=load, mem_alloc=Allocation, mem_get_info=lambda: (room, room), memcpy_htod_async=copied,
        memcpy_dtoh_async=copied, memset_d8_async=lambda *a: log.append("clear"),
        memcpy_dtod_async=lambda *a: log.append("copy"),
    )  # fmt: skip


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextlib.contextmanager
    def use(**options: Any) -> Any:
        log = Log()
        module = fake_pycuda(log, **options)
        monkeypatch.setattr(cuda, "require", lambda: module)
        cuda._context.cache_clear()
        yield log
        cuda._context.cache_clear()

    return use


def compiled(target: str = "sm_90") -> Any:
    return fx.jit(lambda x: fx.sum(fx.exp(x), axis=1)).lower(fx.f32[4, 8]).compile(target)


def test_pycuda_is_called_in_order(pycuda: Any) -> None:
    with pycuda() as log:
        c = compiled()
        program = cuda.load_program(c.spec, c.code, c.constants)
        assert cuda.devices()[0].capability == 90 and cuda.target_of("cuda") == "sm_90"
        program(np.ones((4, 8), np.float32))
    launches = [e for e in log if isinstance(e, tuple) and e[0] == "launch"]
    assert len(launches) == 1 and launches[0][1] in {k["name"] for k in c.spec["kernels"]}
    assert log.count("push") == log.count("pop"), "the context is current only inside our calls"
    kinds = [e if isinstance(e, str) else e[0] for e in log if e not in ("push", "pop")]
    assert kinds.index("alloc") < kinds.index("copy") < kinds.index("launch") < len(kinds) - kinds[::-1].index("copy")
    assert kinds.count("free") >= 2  # the input and the result of the call


def test_what_the_device_refuses(pycuda: Any) -> None:
    c = compiled()
    for options, change, code in (
        ({"capability": (8, 0)}, lambda ptx: ptx, "FX0707"),
        ({}, lambda ptx: b"reject me" + ptx, "FX0704"),
        ({"room": 16}, lambda ptx: ptx, "FX0706"),
    ):
        with pycuda(**options), pytest.raises(FluxError) as e:
            cuda.load_program(c.spec, change(c.code), c.constants)(np.ones((4, 8), np.float32))
        assert e.value.code == code
        if code == "FX0704":
            assert "line 1 is no PTX" in str(e.value), "the log of the just-in-time compiler is shown"
    with pycuda(), pytest.raises(FluxError, match="FX0703"):
        cuda.load_program(c.spec, c.code, c.constants, "cuda:3")


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [
        ("sm_80", 80, True),
        ("sm_80", 90, True),
        ("sm_90", 80, False),
        ("sm_90a", 90, True),
        ("sm_90a", 100, False),
        ("sm_100f", 103, True),
    ],
)
def test_which_gpus_run_what(target: str, capability: int, runs: bool) -> None:
    assert cuda.runs_on(target, capability) is runs
