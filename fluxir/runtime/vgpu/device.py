"""The virtual GPU as a user sees it: devices, modules, kernels, arrays.

    gpu = Device("sm_80")
    x = gpu.array(np.ones(1000, np.float32))
    report = gpu.load(ptx)["scale"].launch(4, 256, [x, 1000])
    x.numpy(), report.counters.sectors_per_request

A launch whose sanitizer finds something raises `SanitizerError`; memory is then as the kernel left it.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error, register_source
from fluxir.target import GpuTarget, parse_target

from .code import PATIENCE, Code
from .findings import Finding, SanitizerError
from .image import Image, allocate_variables, layout_arguments
from .isa import Form, Opcode
from .launch import Launch, Report, triple
from .link import link
from .memory import Heap
from .parser import parse
from .ptx import Function, Instruction, Variable, type_bytes
from .values import Array, dtype

__all__ = ["Device", "DeviceArray", "Kernel", "Module"]

LOCAL_BYTES = 512 << 10  # most local memory of a thread: CUDA Programming Guide, technical specifications
CHECKS = ("raise", "collect", "off")


class Device:
    """A virtual GPU. `target`: the architecture it pretends to be, which sets limits and what PTX it takes. `capacity`: bytes
    of memory. `check`, `executor`: what launches do with findings, and what runs them, unless they say otherwise. `output`: what
    kernels printed."""

    def __init__(
        self,
        target: str = "sm_90",
        capacity: int = 1 << 34,
        check: str = "raise",
        multiprocessors: int = 108,
        executor: str = "auto",
    ) -> None:
        found = parse_target(target)
        if not isinstance(found, GpuTarget):
            raise error("FX0707", f"{target} is no GPU", help="name an architecture, such as sm_80")
        self.target = found
        self.heap = Heap(capacity)
        self.check = _checked(check)
        self.executor = executor
        self.multiprocessors = multiprocessors
        self.output: list[str] = []
        self.lock = threading.RLock()
        """For drivers: memory and counters belong to one launch at a time."""

    def print(self, text: str) -> None:
        """What a kernel prints: kept in `output` and written to standard output."""
        self.output.append(text)
        sys.stdout.write(text)

    def load(self, ptx: str | bytes) -> Module:
        """A module from PTX text. FX0711 where it does not parse, FX0710 for instructions the virtual GPU lacks, FX0707 where
        it is for a newer architecture."""
        text = ptx.decode() if isinstance(ptx, bytes | bytearray) else ptx
        return Module(self, text)

    def array(self, values: Any, label: str = "") -> DeviceArray:
        """A copy of a numpy array on the device."""
        a = np.ascontiguousarray(values)
        out = self.empty(a.shape, a.dtype, label)
        self.heap.write(out.address, a.reshape(-1).view(np.uint8))
        return out

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32, label: str = "") -> DeviceArray:
        """An array nobody has written to: reading it is a finding."""
        shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
        kind = np.dtype(dtype)
        return DeviceArray(self, self.heap.allocate(math.prod(shape) * kind.itemsize, label), shape, kind)

    def zeros(self, shape: int | Sequence[int], dtype: Any = np.float32, label: str = "") -> DeviceArray:
        out = self.empty(shape, dtype, label)
        self.heap.write(out.address, np.zeros(out.nbytes, np.uint8))
        return out

    def leaks(self) -> list[Finding]:
        """A finding for every allocation that is still alive, those of loaded modules aside."""
        return [
            Finding("leak", f"allocation {a} was never freed", address=a.address)
            for a in self.heap.live.values()
            if not a.internal
        ]

    def close(self) -> None:
        """Check that everything was freed: `SanitizerError` with the leaks."""
        found = self.leaks()
        if found and self.check == "raise":
            raise SanitizerError(found)

    def __repr__(self) -> str:
        return f"vgpu.Device({self.target.name}, {self.heap.used} bytes in use)"


class DeviceArray:
    """An array in the memory of a virtual GPU."""

    def __init__(self, device: Device, address: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self.device, self.address, self.shape, self.dtype = device, address, shape, kind

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numpy(self) -> Array:
        """A copy on the host. FX0711 after `free`."""
        return self.device.heap.read(self.address, self.nbytes).view(self.dtype).reshape(self.shape)

    def set(self, values: Any) -> None:
        """Overwrite with a numpy array of the same shape."""
        a = np.ascontiguousarray(np.broadcast_to(np.asarray(values, self.dtype), self.shape))
        self.device.heap.write(self.address, a.reshape(-1).view(np.uint8))

    def free(self) -> None:
        """Give the memory back. FX0711 the second time."""
        self.device.heap.free(self.address)

    def __repr__(self) -> str:
        return f"vgpu.DeviceArray({self.dtype}{list(self.shape)} at {self.address:#x})"


class Module:
    """PTX loaded onto a device: a mapping from names to kernels."""

    def __init__(self, device: Device, text: str) -> None:
        self.device = device
        with _quoting(text):
            self.ptx = parse(text)
        _check_target(self.ptx.target, device)
        self.places = allocate_variables(self.ptx, device.heap)
        self._kernels: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        """A kernel by name. FX0711 where there is none."""
        if name not in self._kernels:
            f = self.ptx.functions.get(name)
            if f is None or not f.is_entry or f.body is None:
                raise error(
                    "FX0711",
                    f"the module has no kernel {name!r}",
                    help=f"it has {', '.join(self.ptx.entries) or 'none'}",
                )
            self._kernels[name] = Kernel(self, f)
        return self._kernels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ptx.entries)

    def __len__(self) -> int:
        return len(self.ptx.entries)

    def global_array(self, name: str, kind: Any = np.uint8) -> DeviceArray:
        """A `.global` or `.const` variable as an array. FX0711 where there is none."""
        v, place = self.ptx.variables.get(name), self.places.get(name)
        if v is None or place is None:
            raise error("FX0711", f"the module has no variable {name!r}")
        d = np.dtype(kind)
        return DeviceArray(self.device, place.offset, (v.nbytes // d.itemsize,), d)

    def unload(self) -> None:
        """Give the memory of its variables back."""
        for place in self.places.values():
            if place.space == "global":
                self.device.heap.free(place.offset)
        self.places = {}


@dataclass(frozen=True)
class Facts:
    """What is true of a kernel's code whatever it is launched on. `granule`: bytes of its narrowest access to shared or
    global memory, at most 4. `synchronises`: blocks can tell each other something. `spins`: threads wait for others in loops
    that read memory (loops over `mbarrier.try_wait` wait for their own block or cluster, and are none). `reads_by_proxy`: bulk
    copies or `wgmma` read shared memory."""

    granule: int
    writes_global: bool
    synchronises: bool
    calls: bool
    spins: bool
    reads_by_proxy: bool


class Kernel:
    """A kernel of a module, ready to launch."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function, self.name = module, function, function.name
        self.image = Image(module.ptx, function, module.places)
        self.arguments, self.parameter_bytes = layout_arguments(function)

    @functools.cached_property
    def code(self) -> Code:
        """Linked when first used. FX0710 for an instruction that the virtual GPU lacks."""
        with _quoting(self.module.ptx.text):
            return link(self.function, self.image)

    @functools.cached_property
    def facts(self) -> Facts:
        every = [x for b in self.code.blocks for x in b.instructions]
        names = {o.name for o, _, _ in every}
        widths = [4]
        writes = calls = False
        for o, form, _ in every:
            if (
                o.name in ("ld", "st", "atom", "red")
                and form.types
                and "param" not in form.flags
                and "local" not in form.flags
            ):
                widths.append(type_bytes(form.types[-1]))
            if (
                o.name == "wmma" and "mma" not in form.flags
            ):  # by columns, elements of accumulators are stored one by one
                widths.append(2 if form.types == ("f16",) else 4)
            writes |= o.name in ("st", "red", "atom", "cp", "wmma", "call")
            calls |= o.name == "call"
        if calls:
            widths.append(1)
        strong = any({"release", "acquire", "acq_rel", "volatile"} & set(form.flags) for _, form, _ in every)
        strong |= any(o.name == "barrier" and "cluster" in form.flags for o, form, _ in every)
        return Facts(
            min(widths),
            writes,
            strong or bool(names & {"atom", "red", "membar", "fence", "call"}),
            calls,
            any(b.patience >= PATIENCE for b in self.code.blocks),
            any(_reads_by_proxy(o, form) for o, form, _ in every),
        )

    @property
    def cluster(self) -> tuple[int, int, int]:
        """The shape of a cluster that the PTX asks for (`.reqnctapercluster`)."""
        return triple(self.function.limits.get("reqnctapercluster", (1,)))

    @property
    def cluster_size(self) -> int:
        """Blocks of a cluster."""
        return math.prod(self.cluster)

    @functools.cached_property
    def register_pressure(self) -> int:
        """The most 32-bit registers that a thread needs at once."""
        from .registers import pressure

        return pressure(self.code)

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that the kernel declares."""
        return self.image.static_shared

    def launch(
        self,
        grid: Any,
        block: Any,
        args: Sequence[Any] = (),
        shared_bytes: int = 0,
        check: str | None = None,
        seed: int | None = 0,
        cooperative: bool = False,
        executor: str | None = None,
        max_steps: int | None = None,
    ) -> Report:
        """Run the kernel. `grid`, `block`: an integer or up to three. `args`: device arrays, numbers, or bytes for structures,
        converted by the types of the kernel's parameters. `shared_bytes`: dynamic shared memory. `seed`: of the errors that
        approximate instructions make, None for none. `executor`: "numpy", "llvm" (native code; FX0710 for what it cannot run), or
        "auto": native code for launches that are large enough. `max_steps`: after so many the launch counts as endless. FX0711
        for arguments that do not fit, `SanitizerError` for findings."""
        return self.launch_packed(
            grid, block, self.pack(args), shared_bytes, check, seed, cooperative, executor, max_steps
        )

    def pack(self, args: Sequence[Any]) -> bytes:
        """The parameter buffer for a launch."""
        if len(args) != len(self.arguments):
            raise error("FX0711", f"{self.name} takes {len(self.arguments)} arguments, {len(args)} were given",
                        help=", ".join(f".{v.type} {name}" for name, (_, v) in self.arguments.items()))  # fmt: skip
        out = bytearray(self.parameter_bytes)
        for a, (name, (offset, v)) in zip(args, self.arguments.items()):
            raw = _argument(a, v, f"{self.name}: argument {name}")
            out[offset : offset + len(raw)] = raw
        return bytes(out)

    def launch_packed(
        self,
        grid: Any,
        block: Any,
        parameters: bytes,
        shared_bytes: int = 0,
        check: str | None = None,
        seed: int | None = 0,
        cooperative: bool = False,
        executor: str | None = None,
        max_steps: int | None = None,
    ) -> Report:
        """`launch` with the parameters laid out in memory, as a driver takes them."""
        mode = _checked(check or self.module.device.check)
        start = time.perf_counter()
        grid, block = triple(grid), triple(block)
        if len(parameters) < self.parameter_bytes:
            raise error(
                "FX0711", f"{self.name} takes {self.parameter_bytes} bytes of parameters, {len(parameters)} were given"
            )
        limit = self._over_limits(grid, block, shared_bytes)
        if limit:
            raise SanitizerError([Finding("limit", limit, self.name)])
        launch = Launch(self, grid, block, bytes(parameters), shared_bytes, mode, seed, cooperative, max_steps)
        ran = launch.run(executor or self.module.device.executor)
        return launch.report(time.perf_counter() - start, ran)

    def _over_limits(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int) -> str:
        """Why a GPU of this architecture would refuse the launch; empty where it would not."""
        t = self.module.device.target
        threads, limits = math.prod(block), self.function.limits
        shared = self.static_shared + shared_bytes
        if min(*grid, *block) < 1:
            return f"grid {grid} and block {block} must be positive"
        if threads > t.max_threads_per_block:
            return f"{threads} threads in a block; {t.name} takes {t.max_threads_per_block}"
        for what, have, most in (("block", block, t.max_block), ("grid", grid, t.max_grid)):
            for axis, n, m in zip("xyz", have, most):
                if n > m:
                    return f"{what}.{axis} = {n}; {t.name} takes {m}"
        if self.static_shared > t.shared_static:
            return f"{self.static_shared} bytes of static shared memory; {t.name} takes {t.shared_static}"
        if shared > t.shared_per_block:
            return f"{shared} bytes of shared memory; a block of {t.name} takes {t.shared_per_block}"
        if self.code.local_bytes > LOCAL_BYTES:
            return f"{self.code.local_bytes} bytes of local memory for a thread; a GPU has {LOCAL_BYTES}"
        if "maxntid" in limits and threads > math.prod(limits["maxntid"]):
            return (
                f"{threads} threads in a block; the kernel was compiled for {math.prod(limits['maxntid'])} (.maxntid)"
            )
        if "reqntid" in limits and block != triple(limits["reqntid"]):
            return f"blocks of {block}; the kernel was compiled for {triple(limits['reqntid'])} (.reqntid)"
        if "maxnreg" in limits and limits["maxnreg"][0] * threads > t.registers_per_sm:
            return f"{limits['maxnreg'][0]} registers for {threads} threads; {t.name} has {t.registers_per_sm}"
        if threads * t.registers_per_thread > t.registers_per_sm and not {"maxntid", "reqntid", "maxnreg"} & set(
            limits
        ):
            # ptxas does with fewer than are live at once by ordering and computing anew: a third fewer at the most seen.
            needed = 2 * min(self.register_pressure, t.registers_per_thread) // 3
            if needed * threads > t.registers_per_sm:
                return (
                    f"{needed} registers at least for each of {threads} threads; a multiprocessor of {t.name} has "
                    f"{t.registers_per_sm} (.maxntid would make the compiler use fewer)"
                )
        cluster = self.cluster
        if any(n % c for n, c in zip(grid, cluster)):
            return f"grid {grid} is not a multiple of the cluster {cluster}"
        return ""

    def instructions(self) -> list[Instruction]:
        """All instructions of the linked code, in the order of its blocks."""
        return [form.instruction for b in self.code.blocks for _, form, _ in b.instructions]


def _reads_by_proxy(opcode: Opcode, form: Form) -> bool:
    """Whether an instruction reads shared memory through the async proxy."""
    if opcode.name == "cp" and form.has("bulk"):
        spaces = [f for f in form.flags if f in ("global", "shared::cta", "shared::cluster")]
        return len(spaces) == 2 and spaces[1] != "global"
    return opcode.name == "wgmma" and form.has("mma_async")


def _argument(a: Any, v: Variable, what: str) -> bytes:
    """An argument as the bytes of its parameter."""
    if v.is_array:
        raw = a if isinstance(a, bytes | bytearray) else np.asarray(a).tobytes()
        if len(raw) != v.nbytes:
            raise error("FX0711", f"{what} takes {v.nbytes} bytes, {len(raw)} were given")
        return bytes(raw)
    if isinstance(a, DeviceArray):
        a = a.address
    elif a is None:
        a = 0
    elif hasattr(a, "__cuda_array_interface__"):
        a = a.__cuda_array_interface__["data"][0]
    kind = dtype(v.type)
    if (
        isinstance(a, np.ndarray | np.generic)
        and a.size == 1
        and a.dtype.itemsize == kind.itemsize
        and kind.kind == "u"
    ):
        return bytes(a.tobytes())  # the bits, as they are
    if not isinstance(a, int | float | np.number | np.bool_):
        raise error("FX0711", f"{what} takes .{v.type}, {type(a).__name__} was given",
                    help="pass a device array (`gpu.array(x)`) or a number")  # fmt: skip
    if v.type == "f16" or kind.kind == "f":
        return bytes(kind.type(a).tobytes())
    number = int(a)
    if number != a:
        if v.type[0] == "b" and isinstance(a, float):  # an untyped parameter takes a float of its width
            return bytes(np.dtype(f"f{kind.itemsize}").type(a).tobytes())
        raise error("FX0711", f"{what} takes .{v.type}, {a!r} is no integer")
    bits = 8 * kind.itemsize
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise error("FX0711", f"{what} takes .{v.type}, and {number} does not fit")
    return (number & ((1 << bits) - 1)).to_bytes(kind.itemsize, "little")


def _check_target(target: str, device: Device) -> None:
    name = target.split(",")[0].strip()
    if not name:
        return
    t = parse_target(name) if name.startswith("sm_") else None
    if isinstance(t, GpuTarget) and not t.runs_on(device.target.capability):
        raise error("FX0707", f"the PTX is for {name}, and the device is {device.target.name}",
                    help=f'vgpu.Device("{name}") runs it')  # fmt: skip


@contextmanager
def _quoting(ptx: str) -> Iterator[None]:
    """Errors at a line of the PTX show that line."""
    try:
        yield
    except FluxError:
        register_source("<ptx>", ptx)
        raise


def _checked(check: str) -> str:
    if check not in CHECKS:
        raise ValueError(f"check is one of {', '.join(CHECKS)}, not {check!r}")
    return check
