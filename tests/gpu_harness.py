"""A device for tests without a GPU: its memory is one numpy array, its kernels are run by the loop interpreter.

What the runtime does for a real device is done in full (manifest, sizes, packed parameters, arena, control flow); only
the machine code is replaced, by its meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir import driver
from fluxir.ir.core import Module
from fluxir.ir.interp import Interpreter
from fluxir.ir.simt import run_grid
from fluxir.runtime import arguments, sizes
from fluxir.runtime.launch import GpuProgram, parameter_format

BASE = 0x7000_0000_0000  # of a device address: no host address and no offset looks like one
ALIGN = 256


class FakeDriver:
    """Implements `fluxir.runtime.launch.Driver`. `live`: bytes by address; `launched`: kernels by name, in order."""

    def __init__(self, spec: dict[str, Any], loops: Module, capacity: int = 1 << 24) -> None:
        self.loops = loops
        self.entries = {k["name"]: k for k in spec["kernels"]}
        self.memory = np.full(capacity, 77, np.uint8)
        self.top = ALIGN
        self.live: dict[int, int] = {}
        self.launched: list[str] = []

    def place(self, address: int, nbytes: int) -> Any:
        """The bytes at an address, which must lie in one live allocation."""
        assert any(a <= address and address + nbytes <= a + n for a, n in self.live.items()), "not allocated"
        return self.memory[address - BASE : address - BASE + nbytes]

    def allocate(self, nbytes: int) -> int:
        assert nbytes > 0
        address, self.top = BASE + self.top, self.top + -(-nbytes // ALIGN) * ALIGN
        assert self.top <= len(self.memory)
        self.live[address] = nbytes
        return address

    def free(self, address: int) -> None:
        del self.live[address]
        if not self.live:
            self.top = ALIGN

    def upload(self, address: int, array: Any) -> None:
        self.place(address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: Any, address: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.place(address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.place(target, nbytes)[:] = self.place(source, nbytes)

    def clear(self, address: int, nbytes: int) -> None:
        self.place(address, nbytes)[:] = 0

    def synchronize(self) -> None:
        pass

    def unpack(self, kernel: str, parameters: bytes) -> tuple[list[Any], dict[str, int]]:
        """The kernel's arguments as (address, dtype, shape) or number, and its sizes, from packed parameters."""
        layout = self.entries[kernel]["args"]
        values = struct.unpack(parameter_format(layout), parameters)
        for a, v in zip(layout, values, strict=True):  # the layout's offsets are those of the packed bytes
            raw = parameters[a["offset"] : a["offset"] + a["size"]]
            assert a["dtype"] == "f16" or int.from_bytes(raw, "little") == (
                v if isinstance(v, int) and v >= 0 else int.from_bytes(raw, "little")
            )
        known = {a["name"]: v for a, v in zip(layout, values) if a["kind"] == "size"}
        out: list[Any] = []
        for a, v in zip(layout, values):
            if a["kind"] == "memory":
                out.append((v, arguments.dtype(a["dtype"]), tuple(sizes.evaluate(d, known) for d in a["shape"])))
            elif a["kind"] == "scalar":
                out.append(np.asarray(v, arguments.dtype(a["dtype"]))[()])
        return out, known

    def launch(self, kernel: str, grid: Sequence[int], block: Sequence[int], parameters: bytes) -> None:
        self.launched.append(kernel)
        f = self.loops.funcs[self.entries[kernel]["kernel"]]
        given, known = self.unpack(kernel, parameters)
        args = []
        for a in given:
            if isinstance(a, tuple):
                address, d, shape = a
                nbytes = int(np.prod(shape, dtype=np.int64)) * d.itemsize
                args.append(self.place(address, nbytes).view(d).reshape(shape) if nbytes else np.zeros(shape, d))
            else:
                args.append(a)
        it = Interpreter(self.loops, known)
        assert it.shape(f.attrs["grid"]) == tuple(grid) and tuple(f.attrs["block"]) == tuple(block)
        run_grid(it, f, args)


def on_fake_device(module: Module, target: str = "sm_80") -> tuple[GpuProgram, FakeDriver, Any]:
    """A tensor module compiled to PTX and loaded on a fake device: the program, the device, the code."""
    t = driver.as_target(target)
    loops = driver.build(module, t).stages["loops"]
    code = driver.generate(loops, t)
    device = FakeDriver(code.spec, loops)
    return GpuProgram(code.spec, device, code.constants), device, code
