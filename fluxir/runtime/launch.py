"""Executes a GPU program: the host functions of its manifest (see `fluxir/codegen/manifest.py`), launch by launch.

`GpuProgram` knows what to do, a `Driver` knows how to do it on a device: `cuda.py` has the one for NVIDIA's driver. A
device address is an integer; memory of zero bytes has address 0. Invariants:

- Nothing is launched before the arguments have been checked, the same way as for programs on the CPU.
- A kernel's parameters are packed as its entry in the manifest says; a grid without blocks is not launched.
- All work is in order of one stream; reading a condition or a result waits for it.
- Device memory that a call asked for is given back when it ends, errors included; the arena and the constants stay.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime import arguments, sizes

__all__ = ["Driver", "GpuProgram", "parameter_format"]

Array = NDArray[Any]
Spec = Mapping[str, Any]
MAX_DEPTH = 4000  # nested calls, as on the CPU
MAX_BLOCKS = 2**31 - 1
_FRAMES = 8  # Python frames of one nested call, with room to spare


class Driver(Protocol):
    """What the executor asks of a device. All operations are in order of one stream."""

    def allocate(self, nbytes: int) -> int:
        """The address of `nbytes` (> 0) of device memory, a multiple of 256. FX0706 where there is none."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave, once the work that uses it is done."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array (> 0 bytes) to the device."""

    def download(self, array: Array, address: int) -> None:
        """Fill a contiguous array (> 0 bytes) from the device, once all work before is done."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the device; the two do not overlap."""

    def clear(self, address: int, nbytes: int) -> None:
        """Set bytes to 0."""

    def launch(self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes) -> None:
        """Start a kernel of the program by its name in the PTX. FX0705 where the device refuses."""

    def synchronize(self) -> None:
        """Wait for all work. FX0705 where some of it failed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A tensor on the device."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        n = int(self.dtype.itemsize)
        for d in self.shape:
            n *= d
        return n


def parameter_format(layout: Sequence[Spec]) -> str:
    """How `struct` packs a kernel's parameters: in order, each at a multiple of its size."""
    letters = {"bool": "?", "f16": "e", "bf16": "H", "f32": "f", "f64": "d"}
    letters |= {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
    return "".join("Q" if a["kind"] == "memory" else letters[a["dtype"]] for a in layout)


class GpuProgram:
    """A program on a device: callable like `fluxir.runtime.program.Program`, on numpy arrays."""

    def __init__(self, spec: Spec, driver: Driver, constants: Sequence[Array] = ()) -> None:
        self.spec, self.driver = dict(spec), driver
        self.kernels = {k["kernel"]: (k, parameter_format(k["args"])) for k in spec["kernels"]}
        self.functions = spec["host"]["functions"]
        self.input_dtypes = [arguments.dtype(t["dtype"]) for t in spec["inputs"]]
        self.output_dtypes = [arguments.dtype(t["dtype"]) for t in spec["outputs"]]
        self.constants = []
        for a in constants:
            address = driver.allocate(a.nbytes) if a.nbytes else 0
            if a.nbytes:
                driver.upload(address, np.ascontiguousarray(a))
            self.constants.append(Memory(address, a.dtype, a.shape))
        self._arena, self._arena_size = 0, 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run on arrays by position or by input name. One array, or a tuple of them where there are several results."""
        values = arguments.bind(self.spec, args, named) if named or len(args) != len(self.input_dtypes) else list(args)
        results = self.call_flat(values)
        return results[0] if len(results) == 1 else tuple(results)

    def call_flat(self, arrays: Sequence[Any]) -> list[Array]:
        """Run on the inputs in order; returns the results in order, in host memory. Raises FX06xx and FX07xx."""
        given = arguments.prepare(self.spec, self.input_dtypes, arrays)
        known = arguments.solve(self.spec, [a.shape for a in given])
        with self.memories() as allocate:
            inputs = []
            for a in given:
                m = Memory(allocate(a.nbytes), a.dtype, a.shape)
                if a.nbytes:
                    self.driver.upload(m.address, a)
                inputs.append(m)
            outputs = []
            for t, d in zip(self.spec["outputs"], self.output_dtypes, strict=True):
                shape = tuple(sizes.evaluate(n, known) for n in t["shape"])
                m = Memory(0, d, shape)
                outputs.append(Memory(allocate(m.nbytes), d, shape))
            self.run_on(inputs, outputs, known)
            for j, i in self.spec.get(
                "donated", ()
            ):  # on a device the host's array is only read: nothing is given away
                outputs[j] = inputs[i]
            results = [np.empty(m.shape, m.dtype) for m in outputs]
            for a, m in zip(results, outputs):
                if a.nbytes:
                    self.driver.download(a, m.address)
            self.driver.synchronize()
        return results

    def call_same(self, arrays: Sequence[Any]) -> list[Array] | None:
        """None: on a GPU there is no faster way for arguments that look like those of the call before."""
        return None

    def run_on(self, inputs: Sequence[Memory], outputs: Sequence[Memory], known: Mapping[str, int]) -> None:
        """Start all work on memory that is on the device already; does not wait for the end of it."""
        name = self.spec["host"]["entry"]
        function = self.functions[name]
        args = [*inputs, *outputs]
        if len(function["args"]) > len(args):
            nbytes = sizes.evaluate(function["arena"], known)
            args.append(Memory(self.arena(nbytes), np.dtype(np.uint8), (nbytes,)))
        _Frame(self, function, known, 0).run(args)

    def arena(self, nbytes: int) -> int:
        """The address of the arena, which grows as needed."""
        if nbytes > self._arena_size:
            if self._arena:
                self.driver.synchronize()
                self.driver.free(self._arena)
            self._arena = self._arena_size = 0
            self._arena = self.driver.allocate(nbytes)
            self._arena_size = nbytes
        return self._arena

    @contextmanager
    def memories(self) -> Iterator[Callable[[int], int]]:
        """Device memory that is given back at the end."""
        held: list[int] = []

        def allocate(nbytes: int) -> int:
            if not nbytes:
                return 0
            held.append(self.driver.allocate(nbytes))
            return held[-1]

        try:
            yield allocate
        finally:
            for address in reversed(held):
                self.driver.free(address)

    def close(self) -> None:
        """Give back the arena and the constants; the program cannot be called any more."""
        self.driver.synchronize()
        for address in [self._arena, *[m.address for m in self.constants]]:
            if address:
                self.driver.free(address)
        self._arena = self._arena_size = 0
        self.constants = []

    def failure(self, code: str, message: str) -> FluxError:
        return error(code, f"{self.spec['name']}: {message}")


class _Frame:
    """One call of a host function. `values`: by number, what its steps have computed."""

    def __init__(self, program: GpuProgram, function: Spec, known: Mapping[str, int], depth: int) -> None:
        self.program, self.function, self.depth = program, function, depth
        self.known = {s: known[s] for s in function["symbols"]}
        self.driver = program.driver
        self.values: dict[int, Any] = {}
        self.allocate: Callable[[int], int] = lambda nbytes: 0

    def run(self, args: Sequence[Any]) -> None:
        self.values.update(zip(self.function["args"], args, strict=True))
        with self.program.memories() as self.allocate:
            self.steps(self.function["steps"])

    def steps(self, steps: Sequence[Spec]) -> None:
        for step in steps:
            getattr(self, "do_" + step["op"])(step)

    def region(self, region: Spec, args: Sequence[Any]) -> list[Any]:
        self.values.update(zip(region["args"], args, strict=True))
        self.steps(region["steps"])
        return self.get(region["outs"])

    def get(self, numbers: Sequence[int]) -> list[Any]:
        return [self.values[n] for n in numbers]

    def size(self, text: int | str) -> int:
        return sizes.evaluate(text, self.known)

    def shape(self, step: Spec) -> tuple[int, ...]:
        return tuple(self.size(d) for d in step["shape"])

    def put(self, step: Spec, address: int) -> None:
        self.values[step["result"]] = Memory(address, arguments.dtype(step["dtype"]), self.shape(step))

    # ---- memory
    def do_view(self, step: Spec) -> None:
        self.put(step, self.values[step["arena"]].address + self.size(step["offset"]))

    def do_alloc(self, step: Spec) -> None:
        self.put(step, 0)
        nbytes = self.values[step["result"]].nbytes
        address = self.allocate(nbytes)
        if nbytes and step["zero"]:
            self.driver.clear(address, nbytes)
        self.put(step, address)

    def do_reinterpret(self, step: Spec) -> None:
        self.put(step, self.values[step["memory"]].address)

    def do_subview(self, step: Spec) -> None:
        whole: Memory = self.values[step["memory"]]
        at, nbytes = 0, int(whole.dtype.itemsize)
        for i, n in zip(self.get(step["indices"]), whole.shape):
            at = at * n + int(i)
        for n in whole.shape[len(step["indices"]) :]:
            nbytes *= n
        self.put(step, whole.address + at * nbytes)

    def do_constant(self, step: Spec) -> None:
        self.put(step, self.program.constants[step["index"]].address)

    def do_copy(self, step: Spec) -> None:
        target, source = self.get(step["args"])
        if target.nbytes and target.address != source.address:
            self.driver.copy(target.address, source.address, target.nbytes)

    def do_load(self, step: Spec) -> None:
        memory, *indices = self.get(step["args"])
        at = 0
        for i, n in zip(indices, memory.shape, strict=True):
            at = at * n + int(i)
        one = np.empty(1, memory.dtype)
        self.driver.download(one, memory.address + at * memory.dtype.itemsize)
        self.values[step["result"]] = one[0]

    def read_size(self, number: int) -> int:
        """A size that a kernel has computed: an i64 scalar on the device."""
        one = np.empty(1, np.int64)
        self.driver.download(one, self.values[number].address)
        return int(one[0])

    # ---- kernels and calls
    def do_launch(self, step: Spec) -> None:
        kernel, letters = self.program.kernels[step["kernel"]]
        x, y, z = (self.size(n) for n in kernel["grid"])
        if not (x and y and z):
            return
        if max(x, y, z) > MAX_BLOCKS:
            raise self.program.failure("FX0705", f"the kernel {kernel['name']} needs {max(x, y, z)} blocks")
        given = iter(self.get(step["args"]))
        values: list[Any] = []
        for a in kernel["args"]:
            if a["kind"] == "size":
                values.append(self.known[a["name"]])
                continue
            v = next(given)
            values.append(v.address if isinstance(v, Memory) else _number(v, a["dtype"]))
        bx, by, bz = kernel["block"]
        self.driver.launch(kernel["name"], (x, y, z), (bx, by, bz), struct.pack(letters, *values))

    def do_call(self, step: Spec) -> None:
        if self.depth >= MAX_DEPTH:
            raise self.program.failure("FX0109", f"calls are nested more than {MAX_DEPTH} deep")
        function = self.program.functions[step["function"]]
        given = {s: self.size(d) for s, d in step["dims"].items()}
        given |= {s: self.read_size(n) for s, n in step.get("sized", {}).items()}
        known = {s: given[s] if s in given else self.known[s] for s in function["symbols"]}
        frame = _Frame(self.program, function, known, self.depth + 1)
        args = self.get(step["args"])
        limit = sys.getrecursionlimit()
        if limit < _FRAMES * MAX_DEPTH:
            sys.setrecursionlimit(limit + _FRAMES * MAX_DEPTH)
        with self.program.memories() as allocate:
            if len(args) < len(function["args"]):
                nbytes = frame.size(function["arena"])
                args.append(Memory(allocate(nbytes), np.dtype(np.uint8), (nbytes,)))
            frame.run(args)

    # ---- control flow
    def do_if(self, step: Spec) -> None:
        chosen = step["regions"][0 if self.values[step["condition"]] else 1]
        self.values.update(zip(step["results"], self.region(chosen, self.get(step["args"])), strict=True))

    def do_for(self, step: Spec) -> None:
        lo, hi, by = (int(self.values[step[k]]) for k in ("lo", "hi", "step"))
        carry = self.get(step["args"])
        for i in range(lo, hi, by):
            carry = self.region(step["regions"][0], [np.int64(i), *carry])
        self.values.update(zip(step["results"], carry, strict=True))

    def do_while(self, step: Spec) -> None:
        condition, body = step["regions"]
        count = len(step["results"])
        given = self.get(step["args"])
        carry, fixed = given[:count], given[count:]
        while self.region(condition, [*carry, *fixed])[0]:
            carry = self.region(body, [*carry, *fixed])
        self.values.update(zip(step["results"], carry, strict=True))

    def do_assert(self, step: Spec) -> None:
        if not self.values[step["condition"]]:
            where = f" ({step['source']})" if step["source"] else ""
            raise self.program.failure("FX0608", f"assertion failed: {step['message']}{where}")

    # ---- scalars
    def do_scalar(self, step: Spec) -> None:
        name, d = step["name"], arguments.dtype(step["dtype"])
        if name == "const":
            value: Any = step["value"]
        elif name == "dim":
            value = self.size(step["value"])
        elif name == "cast":
            value = self.get(step["args"])[0]
        else:
            with np.errstate(all="ignore"):
                value = _SCALARS[name](*self.get(step["args"]))
        self.values[step["result"]] = np.asarray(value).astype(d)[()]


def _number(v: Any, dtype: str) -> Any:
    """A scalar as `struct` takes it."""
    return int(np.asarray(v).view(np.uint16)) if dtype == "bf16" else np.asarray(v).item()


def _divide(x: Any, y: Any) -> Any:
    """Towards zero for integers, where division by zero gives 0."""
    if np.issubdtype(np.asarray(x).dtype, np.integer):
        q = abs(int(x)) // abs(int(y)) if y else 0
        return np.int64(-q if (x < 0) != (y < 0) else q) if x.dtype.kind == "i" else np.uint64(q)
    return x / y


def _remainder(x: Any, y: Any) -> Any:
    if np.issubdtype(np.asarray(x).dtype, np.integer) and not y:
        return x - x
    return np.fmod(x, y)


_SCALARS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide, "fmod": _remainder, "neg": np.negative,
    "minimum": np.minimum, "maximum": np.maximum, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_not": np.logical_not, "select": lambda c, x, y: x if c else y,
}  # fmt: skip
