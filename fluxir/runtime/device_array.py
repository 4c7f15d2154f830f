"""Arrays in the memory of a GPU, and how arrays of other libraries get into a program without a copy.

`DeviceArray` is what a program returns when it was given arrays on the device. CuPy, PyTorch, JAX and Numba take one through
`__dlpack__` or `__cuda_array_interface__`, and `Exchange.adopt` takes theirs. Streams follow the conventions of both
protocols: who takes an array waits, on the device, for the stream that fills it. Invariants:

- An array given to a program is read where it lies (copied on the device only where it is not aligned to `ALIGN` bytes).
- What belongs to others is held until the work that uses it is done.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import error
from fluxir.runtime import dlpack

if TYPE_CHECKING:
    from fluxir.runtime.cuda_device import Gpu

__all__ = ["Adopted", "DeviceArray", "Exchange"]

ALIGN = 16  # the widest load of one thread


class DeviceArray:
    """A C-contiguous array on a GPU. Its memory goes back when the last reference to it goes."""

    def __init__(self, gpu: Gpu, address: int, dtype: np.dtype[Any], shape: tuple[int, ...], keep: Any = None) -> None:
        """`keep`: who owns the memory; None: this array does, and gives it back."""
        self.gpu, self.address, self.dtype, self.shape, self._keep = gpu, address, dtype, shape, keep
        if keep is None and address:
            weakref.finalize(self, gpu.free, address)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device(self) -> str:
        """`cuda:0`."""
        return f"cuda:{self.gpu.number}"

    def numpy(self) -> NDArray[Any]:
        """A copy in host memory, once the work that fills the array is done. FX0705 and FX0708 where that work failed."""
        out = np.empty(self.shape, self.dtype)
        with self.gpu.lock:
            if self.nbytes:
                self.gpu.download(out, self.address, "DeviceArray.numpy")
            self.gpu.synchronize("DeviceArray.numpy")
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise error("FX0610", f"an array on {self.device} is not copied to the host unasked", help="use .numpy()")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array of rank 0")
        return self.shape[0]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.name == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16: use DLPack")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self.gpu.stream.handle,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.gpu.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule. `stream`: the taker's, as in the array API: None or 1 the default stream, 2 the default one of this
        thread, -1 the taker does not want to wait, else a stream's handle."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"the array is on {self.device}: copy it with .numpy()")
        if stream == 0:
            raise ValueError("stream 0 can mean two streams: give 1 or 2")
        given = self.copy() if copy else self
        if stream != -1:
            self.gpu.let_wait(1 if stream is None else stream)
        versioned = max_version is not None and max_version[0] >= 1
        return dlpack.export(
            given.address, self.dtype, self.shape, self.gpu.number, given, versioned, copied=bool(copy)
        )

    def copy(self) -> DeviceArray:
        """A copy on the same device."""
        address = self.gpu.allocate(self.nbytes, "DeviceArray.copy") if self.nbytes else 0
        out = DeviceArray(self.gpu, address, self.dtype, self.shape)
        if self.nbytes:
            self.gpu.copy(address, self.address, self.nbytes, "DeviceArray.copy")
        return out

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype.name}{list(self.shape)} on {self.device})"


@dataclass(frozen=True)
class Adopted:
    """Memory on the device that a program may use; `keep` owns it."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read_only: bool
    keep: Any


class Exchange:
    """Arrays in and out of one device."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def adopt(self, t: Mapping[str, Any], want: np.dtype[Any], x: Any) -> Adopted | None:
        """`x` where it is an array on a GPU; None where it is not. FX0610 for another device, FX0612 where it cannot be shared.
        What is put into our stream from now on runs after what fills the array."""
        if isinstance(x, DeviceArray):
            if x.gpu is not self.gpu:
                raise self._elsewhere(t, x.device)
            return Adopted(x.address, x.dtype, x.shape, False, x)
        if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
            kind, number = (int(n) for n in x.__dlpack_device__())
            if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
                return None
            if number != self.gpu.number:
                raise self._elsewhere(t, f"cuda:{number}")
            return self._aligned(self._from_dlpack(t, x))
        found = getattr(x, "__cuda_array_interface__", None)
        return self._aligned(self._from_interface(t, x, found)) if isinstance(found, dict) else None

    def _elsewhere(self, t: Mapping[str, Any], device: str) -> Exception:
        return error(
            "FX0610",
            f"{t['name']} is on {device}, the program runs on cuda:{self.gpu.number}",
            help="copy it there, or load the program on its device",
        )

    def _refused(self, t: Mapping[str, Any], why: str, help: str = "copy it to a contiguous array first") -> Exception:
        return error("FX0612", f"{t['name']}: the array cannot be shared: {why}", help=help)

    def _from_dlpack(self, t: Mapping[str, Any], x: Any) -> Adopted:
        stream = self.gpu.stream.handle
        try:
            try:
                capsule = x.__dlpack__(stream=stream, max_version=(1, 1))
            except TypeError:  # a library from before DLPack 1.0
                capsule = x.__dlpack__(stream=stream)
            found = dlpack.read(capsule)
        except (BufferError, RuntimeError, ValueError) as reason:
            raise self._refused(t, str(reason)) from None
        if found.dtype is None:
            raise self._refused(t, "numpy has no such element type", "convert it")
        if not found.contiguous:
            raise self._refused(t, "it is strided")
        return Adopted(found.address, found.dtype, found.shape, found.read_only, found.capsule)

    def _from_interface(self, t: Mapping[str, Any], x: Any, found: Mapping[str, Any]) -> Adopted:
        shape, d = tuple(int(n) for n in found["shape"]), np.dtype(found["typestr"])
        address, read_only = found["data"]
        if found.get("mask") is not None:
            raise self._refused(t, "it has a mask")
        strides, step = found.get("strides"), d.itemsize
        for n, s in reversed(list(zip(shape, strides or ()))):
            if n != 1 and s != step and 0 not in shape:
                raise self._refused(t, "it is strided")
            step *= n
        stream = found.get("stream")
        if stream is not None:
            self.gpu.wait_for(int(stream))
        return Adopted(int(address or 0), d, shape, bool(read_only), x)

    def _aligned(self, a: Adopted) -> Adopted:
        nbytes = math.prod(a.shape) * a.dtype.itemsize
        if a.address % ALIGN == 0 or not nbytes:
            return a
        return self.own_copy(a)

    def own_copy(self, a: Adopted) -> Adopted:
        """The same values in memory of ours."""
        source = DeviceArray(self.gpu, a.address, a.dtype, a.shape, keep=a.keep)
        copy = source.copy()
        self.gpu.hold(a.keep)
        return Adopted(copy.address, a.dtype, a.shape, False, copy)

    def hold(self, a: Adopted) -> None:
        """Keep foreign memory until the work that is in our stream now is done."""
        if not isinstance(a.keep, DeviceArray):
            self.gpu.hold(a.keep)

    def give(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...], keep: Any = None) -> DeviceArray:
        """A result that stays on the device."""
        return DeviceArray(self.gpu, address, dtype, shape, keep)
