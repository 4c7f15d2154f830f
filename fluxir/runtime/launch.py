"""Executes a GPU program: the host functions of its manifest (see `fluxir/codegen/manifest.py`), launch by launch.

`GpuProgram` knows what to do, a `Driver` knows how to do it on a device: `cuda.py` has the one for NVIDIA's driver. A
device address is an integer; memory of zero bytes has address 0. Invariants:

- Nothing is launched before the arguments have been checked, the same way as for programs on the CPU.
- A kernel's parameters are packed as its entry in the manifest says; a grid without blocks is not launched.
- All work is in order of one stream; reading a condition or a result waits for it.
- Results are where the arguments are: with an array on the device among them they stay there, and the call does not wait.
- Device memory that a call asked for is given back when it ends, errors included; the arena and the constants stay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import FluxError, error
from fluxir.runtime import arguments, sizes
from fluxir.runtime.device_array import Adopted, Exchange
from fluxir.runtime.frame import NAMED, Allocate, Driver, Frame, Memory
from fluxir.runtime.replay import Graphs, Replays, is_static

__all__ = ["Driver", "GpuProgram", "Memory", "parameter_format"]

Array = NDArray[Any]
Spec = Mapping[str, Any]


def parameter_format(layout: Sequence[Spec]) -> str:
    """How `struct` packs a kernel's parameters: in order, each at a multiple of its size."""
    letters = {"bool": "?", "f16": "e", "bf16": "H", "f32": "f", "f64": "d"}
    letters |= {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
    return "".join("Q" if a["kind"] == "memory" else letters[a["dtype"]] for a in layout)


@dataclass
class Held:
    """What a program keeps on the device between calls: constants and the arena, and graphs that use them."""

    driver: Driver
    addresses: list[int] = field(default_factory=list)
    replays: Replays | None = None

    def release(self) -> None:
        with suppress(FluxError):
            self.driver.synchronize()
        with suppress(FluxError):
            if self.replays is not None:
                self.replays.clear()
        addresses, self.addresses = self.addresses, []
        for address in addresses:
            self.driver.free(address)


@dataclass
class _Argument:
    """An argument on the device. `adopted`: it was there already; `array`: it has to be copied there first."""

    memory: Memory
    adopted: Adopted | None = None
    array: Array | None = None


class GpuProgram:
    """A program on a device: callable like `fluxir.runtime.program.Program`, on numpy arrays and on arrays on the device."""

    def __init__(
        self,
        spec: Spec,
        driver: Driver,
        constants: Sequence[Array] = (),
        exchange: Exchange | None = None,
        graphs: Graphs | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """`exchange`: how arrays on the device come in and go out (None: they do not); `graphs`: where the device has them;
        `lock`: is held during a call."""
        self.spec, self.driver, self.exchange = dict(spec), driver, exchange
        self.lock = lock if lock is not None else threading.RLock()
        self.kernels = {k["kernel"]: (k, parameter_format(k["args"])) for k in spec["kernels"]}
        self.functions = spec["host"]["functions"]
        self.input_dtypes = [arguments.dtype(t["dtype"]) for t in spec["inputs"]]
        self.output_dtypes = [arguments.dtype(t["dtype"]) for t in spec["outputs"]]
        self.held = Held(driver, replays=Replays(graphs) if graphs is not None and is_static(spec["host"]) else None)
        self.constants = []
        self.launched: list[str] = []  # kernels since the device was known to be well, for messages
        self._kernel_names: list[str] = []  # of the launch list, for calls that replay it
        self._arena, self._arena_size = 0, 0
        try:
            for a in constants:
                address = driver.allocate(a.nbytes) if a.nbytes else 0
                if a.nbytes:
                    self.held.addresses.append(address)
                    driver.upload(address, np.ascontiguousarray(a))
                self.constants.append(Memory(address, a.dtype, a.shape))
        except FluxError:
            self.held.release()
            raise

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run on arrays by position or by input name. One array, or a tuple of them where there are several results."""
        values = arguments.bind(self.spec, args, named) if named or len(args) != len(self.input_dtypes) else list(args)
        results = self.call_flat(values)
        return results[0] if len(results) == 1 else tuple(results)

    def call_flat(self, arrays: Sequence[Any]) -> list[Any]:
        """Run on the inputs in order; returns the results in order: in host memory, or on the device where an input is
        there. Raises FX06xx and FX07xx."""
        with self.lock, self.naming():
            given = self._given(arrays)
            known = arguments.solve(self.spec, [a.memory.shape for a in given])
            stays = any(a.adopted is not None for a in given)
            with self.memories() as allocate:
                for a in given:
                    if a.array is not None and a.array.nbytes:
                        a.memory = Memory(allocate(a.array.nbytes), a.memory.dtype, a.memory.shape)
                        self.driver.upload(a.memory.address, a.array)
                self._donate(given, allocate)
                inputs = [a.memory for a in given]
                outputs = []
                for t, d in zip(self.spec["outputs"], self.output_dtypes, strict=True):
                    shape = tuple(sizes.evaluate(n, known) for n in t["shape"])
                    m = Memory(0, d, shape)
                    outputs.append(Memory(allocate(m.nbytes), d, shape))
                self._start(inputs, outputs, known)
                places = dict(self.spec.get("donated", ()))
                outputs = [inputs[places[j]] if j in places else m for j, m in enumerate(outputs)]
                if "extents" in self.spec:
                    return self._cut(outputs, [a.memory.shape for a in given], stays)
                if stays:
                    return self._left(given, outputs, places, allocate)
                return self._fetched(outputs)

    checked = call_flat

    def _given(self, arrays: Sequence[Any]) -> list[_Argument]:
        """The inputs, checked. FX06xx."""
        if len(arrays) != len(self.input_dtypes) or self.exchange is None:
            found = arguments.prepare(self.spec, self.input_dtypes, arrays)
            return [_Argument(Memory(0, a.dtype, a.shape), array=a) for a in found]
        out = []
        for t, d, x in zip(self.spec["inputs"], self.input_dtypes, arrays, strict=True):
            adopted = None if isinstance(x, np.ndarray) else self.exchange.adopt(t, d, x)
            if adopted is None:
                a = arguments.prepare_one(t, d, x)
                out.append(_Argument(Memory(0, a.dtype, a.shape), array=a))
            else:
                arguments.check_type(t, d, adopted.dtype, adopted.shape)
                out.append(_Argument(Memory(adopted.address, d, adopted.shape), adopted))
        return out

    def _donate(self, given: Sequence[_Argument], allocate: Callable[[int], int]) -> None:
        """What may be written over must be ours to write: read-only memory is copied. FX0614 where a donated array shares
        memory with another argument. An array of the host is only read: nothing of it is given away."""
        for _, i in self.spec.get("donated", ()):
            a = given[i]
            if a.adopted is None:
                continue
            lo, hi = a.memory.address, a.memory.address + a.memory.nbytes
            for k, other in enumerate(given):
                start = other.memory.address
                if (
                    k != i
                    and other.memory.nbytes
                    and a.memory.nbytes
                    and start < hi
                    and lo < start + other.memory.nbytes
                ):
                    names = [self.spec["inputs"][n]["name"] for n in (i, k)]
                    raise error(
                        "FX0614",
                        f"{self.spec['name']}: the donated input {names[0]} shares memory with {names[1]}",
                        help="pass a copy of one of them",
                    )
            if a.adopted.read_only and self.exchange is not None:
                a.adopted = self.exchange.own_copy(a.adopted)
                a.memory = Memory(a.adopted.address, a.memory.dtype, a.memory.shape)

    def _start(self, inputs: Sequence[Memory], outputs: Sequence[Memory], known: Mapping[str, int]) -> None:
        """Start all work: as a graph where that was captured before."""
        replays = self.held.replays
        if replays is None or not config.get().gpu_graphs:
            self.run_on(inputs, outputs, known)
            return
        self.arena_for(known)
        key = (self._arena, tuple(known.items()), tuple(m.address for m in (*inputs, *outputs)))
        before = len(self.launched)
        replays.run(key, lambda: self.run_on(inputs, outputs, known))
        if len(self.launched) > before:
            self._kernel_names = self.launched[before:]
        else:
            self.launched += self._kernel_names

    def _fetched(self, outputs: Sequence[Memory]) -> list[Array]:
        """Results as arrays of the host, once all is done."""
        results = [np.empty(m.shape, m.dtype) for m in outputs]
        for a, m in zip(results, outputs):
            if a.nbytes:
                self.driver.download(a, m.address)
        self.wait()
        return results

    def _cut(self, outputs: Sequence[Memory], shapes: Sequence[tuple[int, ...]], stays: bool) -> list[Any]:
        """Results of sizes that are known only now. Those that stay on the device are put there anew, in memory of their size."""
        results = arguments.cut(self.spec, self._fetched(outputs), shapes)
        if not stays:
            return list(results)
        assert self.exchange is not None
        left = []
        for a in map(np.ascontiguousarray, results):
            address = self.driver.allocate(a.nbytes) if a.nbytes else 0
            if a.nbytes:
                self.driver.upload(address, a)
            left.append(self.exchange.give(address, a.dtype, a.shape, None))
        return left

    def _left(
        self, given: Sequence[_Argument], outputs: Sequence[Memory], places: Mapping[int, int], allocate: Allocate
    ) -> list[Any]:
        """Results that stay on the device; the work goes on."""
        assert self.exchange is not None
        for a in given:
            if a.adopted is not None:
                self.exchange.hold(a.adopted)
        results = []
        for j, m in enumerate(outputs):
            adopted = given[places[j]].adopted if j in places else None
            if adopted is None:
                allocate.keep(m.address)
            results.append(self.exchange.give(m.address, m.dtype, m.shape, adopted.keep if adopted else None))
        return results

    def wait(self) -> None:
        """Wait for the device. FX0705 and FX0708 where it failed."""
        self.driver.synchronize()
        self.launched.clear()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Errors of the device name the kernels that ran since it was last known to be well."""
        try:
            yield
        except FluxError as problem:
            # One that names a line of its own was found when it happened.
            if problem.code in ("FX0705", "FX0708") and self.launched and problem.loc is None:
                last = self.launched[-NAMED:]
                more = f" (and {len(self.launched) - len(last)} before)" if len(self.launched) > len(last) else ""
                problem.notes.append(f"launched since the device was last known to be well{more}: " + "; ".join(last))
                if len(self.launched) > 1:
                    problem.notes.append("FLUXIR_GPU_SYNC=on waits after every kernel, and names the one that fails")
            self.launched.clear()
            raise

    def run_on(self, inputs: Sequence[Memory], outputs: Sequence[Memory], known: Mapping[str, int]) -> None:
        """Start all work on memory that is on the device already; does not wait for the end of it."""
        function = self.functions[self.spec["host"]["entry"]]
        args = [*inputs, *outputs]
        if len(function["args"]) > len(args):
            nbytes = self.arena_for(known)
            args.append(Memory(self._arena, np.dtype(np.uint8), (nbytes,)))
        Frame(self, function, known, 0).run(args)

    def arena_for(self, known: Mapping[str, int]) -> int:
        """The bytes of temporaries that a call needs; the arena has them afterwards, exactly where it had to grow."""
        nbytes = sizes.evaluate(self.functions[self.spec["host"]["entry"]]["arena"], known)
        if nbytes > self._arena_size:
            if self.held.replays is not None:
                self.held.replays.clear()
            if self._arena:
                self.driver.synchronize()
                self.held.addresses.remove(self._arena)
                self.driver.free(self._arena)
            self._arena = self._arena_size = 0
            self._arena = self.driver.allocate(nbytes)
            self._arena_size = nbytes
            self.held.addresses.append(self._arena)
        return int(nbytes)

    @contextmanager
    def memories(self) -> Iterator[Allocate]:
        """Device memory that is given back at the end."""
        allocate = Allocate(self.driver)
        try:
            yield allocate
        finally:
            for address in reversed(allocate.held):
                self.driver.free(address)

    def close(self) -> None:
        """Give back the arena and the constants; the program cannot be called any more."""
        self.held.release()
        self._arena = self._arena_size = 0
        self.constants = []

    def failure(self, code: str, message: str) -> FluxError:
        return error(code, f"{self.spec['name']}: {message}")
