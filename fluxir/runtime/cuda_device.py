"""One NVIDIA GPU of this process: its context, the one stream that everything of ours runs in, and its memory.

PyCUDA is imported when the first device is opened. Invariants:

- The primary context, shared with other libraries of the process; it is current only while one of our calls runs.
- All programs on a device share one stream, so memory that is given back may be handed out again at once: what used it runs
  before what will.
- Memory is allocated to the byte and kept when it is given back, up to `KEEP` bytes; where the device is full, what is kept
  goes first.
- Copies between host and device pass through pinned memory and are asynchronous; the arrays they fill are filled once
  `synchronize` has returned.
- PyCUDA's objects go while the context is current: their destructors cannot report a driver that refuses to make it so.
- `lock` is held by whoever puts work into the stream that must not be interleaved.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime import libcuda

__all__ = ["Gpu", "close_all", "gpu", "require"]

Array = NDArray[Any]
KEEP = 1 << 28
LEAVING = 64  # copies to the device under way before one waits for them
_ILLEGAL = ("illegal memory access", "misaligned address")


def require() -> Any:
    """PyCUDA's driver module, initialised. FX0701 without an NVIDIA driver or device, FX0702 without PyCUDA."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise error(
            "FX0701",
            "no CUDA driver (libcuda.so.1) was found",
            help="use --device cpu; compiling for a GPU needs none",
        ) from None
    if find_spec("pycuda") is None:
        raise error("FX0702", "PyCUDA is not installed", help="pip install 'fluxir[cuda]'")
    import pycuda.driver as cuda

    try:
        cuda.init()
    except cuda.Error as reason:
        raise error("FX0701", f"the CUDA driver does not start: {reason}", help="`nvidia-smi` tells more") from None
    return cuda


class Gpu:
    """An open device. `name` in messages of calls is what they are done for, a program mostly."""

    def __init__(self, number: int) -> None:
        """FX0701 to FX0703."""
        self.cuda, self.number = require(), number
        try:
            count = self.cuda.Device.count()
        except self.cuda.Error as reason:
            raise error("FX0701", f"the CUDA driver does not answer: {reason}") from None
        if number >= count:
            raise no_device(number, count)
        self.lock = threading.RLock()
        self._depth = 0  # 1 while the context is current
        self._sizes: dict[int, int] = {}  # bytes by address of what is allocated, handed out or kept
        self._memory: dict[int, Any] = {}  # PyCUDA's object by address
        self._spare: dict[int, list[int]] = {}  # addresses that are kept, by bytes
        self._kept = 0
        self._leaving: list[Any] = []  # pinned memory that copies to the device still read
        self._foreign: list[tuple[Any, Any]] = []  # events, and what must live until they have come
        self._arriving: list[tuple[Array, Array]] = []  # arrays to fill, and the pinned memory that has what goes there
        try:
            self.context: Any = self.cuda.Device(number).retain_primary_context()
        except self.cuda.Error as reason:
            raise self.failure(f"the context of cuda:{number}", reason) from None
        with self.current(f"cuda:{number}"):
            self.stream: Any = self.cuda.Stream()
            self._pinned: Any = _pool()

    # ---- calling
    @contextmanager
    def current(self, name: str) -> Iterator[None]:
        """The device's context current, and the driver's errors as ours. FX0705 after `close`."""
        if self.context is None:
            raise error("FX0705", f"{name}: the device cuda:{self.number} was closed")
        try:
            with self.lock:
                if self._depth:  # PyCUDA loses its way where a context is pushed upon itself and the driver refuses
                    yield
                    return
                self.context.push()
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0
                    self._pop()
        except (self.cuda.Error, libcuda.DriverFailure) as reason:
            raise self.failure(name, reason) from None

    def _pop(self) -> None:
        try:
            self.cuda.Context.pop()
        except self.cuda.Error:
            self.cuda.Context.pop()  # a context that stays current would go to whoever calls next

    def failure(self, name: str, reason: Exception) -> FluxError:
        """An error of the driver as one of ours: FX0706 out of memory, FX0708 illegal access, FX0705 the rest."""
        text = str(reason)
        if isinstance(reason, self.cuda.MemoryError) or getattr(reason, "code", 0) == 2:
            return error(
                "FX0706", f"{name}: {text}", help="use a smaller batch, or free arrays that other programs hold"
            )
        if any(words in text for words in _ILLEGAL):
            return error("FX0708", f"{name}: {text}", help="`--device vgpu` runs the same kernels and names the access")
        return error("FX0705", f"{name}: {text}")

    # ---- memory
    def allocate(self, nbytes: int, name: str) -> int:
        """The address of exactly `nbytes` (> 0) bytes. FX0706 where there is no room."""
        with self.lock:
            spare = self._spare.get(nbytes)
            if spare:
                self._kept -= nbytes
                return spare.pop()
            with self.current(name):
                try:
                    memory = self.cuda.mem_alloc(nbytes)
                except self.cuda.MemoryError:
                    self._release_spare()
                    memory = self._allocate_again(nbytes, name)
            address = int(memory)
            self._memory[address], self._sizes[address] = memory, nbytes
            return address

    def _allocate_again(self, nbytes: int, name: str) -> Any:
        try:
            return self.cuda.mem_alloc(nbytes)
        except self.cuda.MemoryError:
            raise error("FX0706", f"{name} asks for {nbytes} bytes, {self._room()}",
                        help="use a smaller batch, or free arrays that other programs hold") from None  # fmt: skip

    def _room(self) -> str:
        try:
            free, total = self.cuda.mem_get_info()
        except self.cuda.Error:
            return "and the driver does not say how many are free"
        return f"{free} of {total} are free"

    def free(self, address: int) -> None:
        """Give memory back, in the order of the stream."""
        with self.lock:
            nbytes = self._sizes.get(address)
            if nbytes is None:  # the device was closed meanwhile
                return
            if self._kept + nbytes <= KEEP:
                self._spare.setdefault(nbytes, []).append(address)
                self._kept += nbytes
            else:
                with (
                    suppress(FluxError),
                    self.current(f"cuda:{self.number}"),
                ):  # a lost context is told by the next call
                    self._release(address)

    def _release(self, address: int) -> None:
        del self._sizes[address]
        self._memory.pop(address).free()  # waits for the work that may use it

    def _release_spare(self) -> None:
        spare = [a for addresses in self._spare.values() for a in addresses]
        self._spare, self._kept = {}, 0
        for address in spare:
            self._release(address)

    def trim(self) -> None:
        """Give the driver back what is kept."""
        with self.current(f"cuda:{self.number}"):
            self._release_spare()

    @property
    def in_use(self) -> int:
        """Bytes that are handed out."""
        return sum(self._sizes.values()) - self._kept

    # ---- copies
    def upload(self, address: int, array: Array, name: str) -> None:
        """Copy a contiguous array to the device; the array may change as soon as this returns."""
        with self.current(name):
            pinned = self._pinned.allocate((array.nbytes,), np.uint8)
            pinned[:] = array.reshape(-1).view(np.uint8)
            self.cuda.memcpy_htod_async(address, pinned, self.stream)
            self._leaving.append(pinned)
            if len(self._leaving) > LEAVING:
                self.stream.synchronize()
                self._leaving.clear()

    def download(self, array: Array, address: int, name: str) -> None:
        """Fill a contiguous array from the device by the next `synchronize`."""
        with self.current(name):
            pinned = self._pinned.allocate((array.nbytes,), np.uint8)
            self.cuda.memcpy_dtoh_async(pinned, address, self.stream)
            self._arriving.append((array, pinned))

    def synchronize(self, name: str) -> None:
        """Wait for all work. What went wrong meanwhile is raised here."""
        with self.lock:
            arriving, self._arriving = self._arriving, []
            leaving, self._leaving = self._leaving, []
            with self.current(name):
                try:
                    self.stream.synchronize()
                    self._foreign.clear()
                    for array, pinned in arriving:
                        array.reshape(-1).view(np.uint8)[:] = pinned
                finally:
                    arriving.clear()
                    leaving.clear()  # back to the pool while the context is current

    def copy(self, target: int, source: int, nbytes: int, name: str) -> None:
        """Copy on the device."""
        with self.current(name):
            self.cuda.memcpy_dtod_async(target, source, nbytes, self.stream)

    # ---- other people's streams and memory
    def wait_for(self, stream: int) -> None:
        """Our work from now on runs after what is in `stream` now."""
        with self.current(f"cuda:{self.number}"):
            libcuda.wait_for_stream(self.stream.handle, stream)

    def let_wait(self, stream: int) -> None:
        """Work of `stream` from now on runs after what is in ours now."""
        with self.current(f"cuda:{self.number}"):
            libcuda.wait_for_stream(stream, self.stream.handle)

    def hold(self, thing: Any) -> None:
        """Keep `thing` alive until the work that is in our stream now is done."""
        with self.current(f"cuda:{self.number}"):
            event = self.cuda.Event(self.cuda.event_flags.DISABLE_TIMING)
            event.record(self.stream)
            self._foreign = [(e, x) for e, x in self._foreign if not e.query()]
            self._foreign.append((event, thing))

    # ---- the end
    def close(self) -> None:
        """Give everything back. Arrays that are still on the device are gone."""
        with suppress(FluxError):
            self.synchronize(f"cuda:{self.number}")
        with self.lock, suppress(FluxError, self.cuda.Error, libcuda.DriverFailure):
            with self.current(f"cuda:{self.number}"):
                self._arriving.clear()
                self._leaving.clear()
                self._foreign.clear()
                self._spare, self._kept = {}, 0
                for address in list(self._sizes):
                    self._release(address)
                self._pinned.stop_holding()
                self._pinned = self.stream = None
            context, self.context = self.context, None
            context.push()
            context.detach()
            libcuda.drop_context(context.handle)
        self.context = None


def _pool() -> Any:
    from pycuda.tools import PageLockedMemoryPool

    return PageLockedMemoryPool()


def no_device(number: int, count: int) -> FluxError:
    return error(
        "FX0703", f"there is no device cuda:{number}: the driver reports {count}", help="`fluxir doctor` lists them"
    )


_open: dict[int, Gpu] = {}
_opening = threading.Lock()


def gpu(number: int) -> Gpu:
    """The open device of a number; one for the whole process. FX0701 to FX0703."""
    with _opening:
        if number not in _open:
            if not _open:
                atexit.register(close_all)
            _open[number] = Gpu(number)
        return _open[number]


def close_all() -> None:
    """Close every device. Programs on them cannot be called any more."""
    with _opening:
        while _open:
            _open.popitem()[1].close()
