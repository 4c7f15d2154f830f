"""One call of a host function of a GPU program: its steps, one after the other, as `fluxir/codegen/manifest.py` writes them.

Branches and loops are decided here, on the host, by numbers that the device has computed: reading one waits for all work
before it. Also what the steps work on: `Memory`, a tensor on the device, and `Driver`, the device.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.runtime import arguments, sizes

if TYPE_CHECKING:
    from fluxir.runtime.launch import GpuProgram

__all__ = ["NAMED", "Allocate", "Driver", "Frame", "Memory"]

Array = NDArray[Any]
Spec = Mapping[str, Any]
MAX_DEPTH = 4000  # nested calls, as on the CPU
MAX_BLOCKS = 2**31 - 1
NAMED = 6  # kernels that a message names
_REMEMBERED = 1000  # launches whose names are kept
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
        """Fill a contiguous array (> 0 bytes) from the device, once all work before is done: by the next `synchronize`."""

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


class Allocate:
    """Allocates, and knows what has to be given back."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.held: list[int] = []

    def __call__(self, nbytes: int) -> int:
        if not nbytes:
            return 0
        self.held.append(self.driver.allocate(nbytes))
        return self.held[-1]

    def keep(self, address: int) -> None:
        """Somebody else gives it back."""
        if address:
            self.held.remove(address)


class Frame:
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
        self.program.wait()
        self.values[step["result"]] = one[0]

    def read_size(self, number: int) -> int:
        """A size that a kernel has computed: an i64 scalar on the device."""
        one = np.empty(1, np.int64)
        self.driver.download(one, self.values[number].address)
        self.program.wait()
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
        source = f" ({step['source']})" if step.get("source") else ""
        if len(self.program.launched) > _REMEMBERED:
            del self.program.launched[:-NAMED]
        self.program.launched.append(f"{kernel['name']}{source}")
        with self.program.naming():
            self.driver.launch(kernel["name"], (x, y, z), (bx, by, bz), struct.pack(letters, *values))
            if config.get().gpu_sync:
                self.driver.synchronize()
                self.program.launched.clear()

    def do_call(self, step: Spec) -> None:
        if self.depth >= MAX_DEPTH:
            raise self.program.failure("FX0109", f"calls are nested more than {MAX_DEPTH} deep")
        function = self.program.functions[step["function"]]
        given = {s: self.size(d) for s, d in step["dims"].items()}
        given |= {s: self.read_size(n) for s, n in step.get("sized", {}).items()}
        known = {s: given[s] if s in given else self.known[s] for s in function["symbols"]}
        frame = Frame(self.program, function, known, self.depth + 1)
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
