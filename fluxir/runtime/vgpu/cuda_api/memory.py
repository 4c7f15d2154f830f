"""The memory that the virtual driver hands out: device memory of all devices in one address space, host memory it knows of.

All devices share one heap, as unified addressing has it; how much of it a device may use is counted here. Memory that host
and device both see (managed, and pinned with a device pointer) exists twice, at the same address: host pages are mapped at
the device's address, and `to_device` and `to_host` carry the bytes over around everything the device does.

Invariants: every block belongs to one context and goes with it; a block is read and written only inside its bounds.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError

from .entry import host_view
from .results import CudaError, Result

if TYPE_CHECKING:
    from ..memory import Heap
    from .state import Context

__all__ = ["Block", "Memory", "Pinned"]

Bytes = NDArray[np.uint8]
PAGE = mmap.PAGESIZE
_FIXED_NOREPLACE = 0x100000  # MAP_FIXED_NOREPLACE of Linux: map at this address or fail


@dataclass
class Block:
    """`nbytes` of device memory at `address`; `base` is the heap's own address of it (earlier where pages are aligned)."""

    address: int
    nbytes: int
    base: int
    context: Context
    host: int = 0  # the host address of the same bytes, 0 where there is none
    kind: str = "device"


@dataclass
class Pinned:
    """Host memory that copies may read and write while the program runs on."""

    address: int
    nbytes: int
    context: Context
    flags: int
    memory: Any = None  # keeps what we allocated ourselves; None for memory that was registered
    device: Block | None = field(default=None, repr=False)


class Memory:
    def __init__(self, heap: Heap) -> None:
        self.heap = heap
        self.blocks: dict[int, Block] = {}
        self.pinned: dict[int, Pinned] = {}
        self.shared: list[Block] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_size_t]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    # ---- device memory
    def used(self, device: int) -> int:
        """Bytes of the device's own memory that are allocated."""
        mine = (b for b in self.blocks.values() if b.context.device == device and b.kind != "mapped")
        return sum(b.nbytes for b in mine)

    def allocate(self, context: Context, nbytes: int, kind: str = "device", align: int = 0) -> Block:
        """INVALID_VALUE for no bytes, OUT_OF_MEMORY where the device has no room."""
        if nbytes <= 0:
            raise CudaError(Result.INVALID_VALUE)
        if nbytes > context.driver.capacity(context.device) - self.used(context.device):
            raise CudaError(Result.OUT_OF_MEMORY)
        try:
            base = self.heap.allocate(nbytes + align)
        except FluxError as reason:
            raise CudaError(Result.OUT_OF_MEMORY, reason.message) from None
        block = Block(-(-base // align) * align if align else base, nbytes, base, context, kind=kind)
        self.blocks[block.address] = block
        return block

    def free(self, address: int) -> None:
        block = self.blocks.pop(address, None)
        if block is None:
            raise CudaError(Result.INVALID_VALUE, f"{address:#x} was not allocated")
        if block in self.shared:
            self.shared.remove(block)
        if block.kind == "managed":
            self._libc.munmap(block.host, _pages(block.nbytes))
        self.heap.free(block.base)

    def allocate_managed(self, context: Context, nbytes: int) -> Block:
        """Memory that the host sees at the device's address. OUT_OF_MEMORY where those pages are taken."""
        block = self.allocate(context, nbytes, "managed", align=PAGE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
        found = self._libc.mmap(block.address, _pages(nbytes), mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found != block.address:
            self.blocks.pop(block.address)
            self.heap.free(block.base)
            raise CudaError(Result.OUT_OF_MEMORY, "the host has no room at the device's address")
        block.host = block.address
        self.shared.append(block)
        return block

    def block_of(self, address: int) -> Block:
        """The block that holds an address. INVALID_VALUE where none does."""
        for b in self.blocks.values():
            if b.address <= address < b.address + b.nbytes:
                return b
        raise CudaError(Result.INVALID_VALUE, f"{address:#x} is no address on a device")

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether the bytes lie inside one block."""
        found = self.heap.nearest(address)
        if found is None or found.freed or address < found.address:
            return False
        return address + nbytes <= found.address + found.nbytes

    def check(self, address: int, nbytes: int) -> None:
        if nbytes and not self.holds(address, nbytes):
            raise CudaError(Result.INVALID_VALUE, f"{nbytes} bytes at {address:#x} are not inside an allocation")

    def read(self, address: int, nbytes: int) -> Bytes:
        self.check(address, nbytes)
        self.to_device()
        return np.asarray(self.heap.read(address, nbytes))

    def write(self, address: int, data: Bytes) -> None:
        self.check(address, data.nbytes)
        self.to_device()
        self.heap.write(address, np.ascontiguousarray(data))
        self.to_host()

    # ---- memory that both sides see
    def to_device(self) -> None:
        for b in self.shared:
            self.heap.write(b.address, host_view(b.host, b.nbytes))

    def to_host(self) -> None:
        for b in self.shared:
            host_view(b.host, b.nbytes)[:] = self.heap.read(b.address, b.nbytes)

    # ---- host memory
    def pin(self, context: Context, nbytes: int, flags: int) -> Pinned:
        if nbytes <= 0:
            raise CudaError(Result.INVALID_VALUE)
        memory = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        return self._add(Pinned(address, nbytes, context, flags, memory))

    def register(self, context: Context, address: int, nbytes: int, flags: int) -> Pinned:
        if not address or not nbytes:
            raise CudaError(Result.INVALID_VALUE)
        if any(p.address < address + nbytes and address < p.address + p.nbytes for p in self.pinned.values()):
            raise CudaError(Result.HOST_MEMORY_ALREADY_REGISTERED)
        return self._add(Pinned(address, nbytes, context, flags))

    def _add(self, p: Pinned) -> Pinned:
        self.pinned[p.address] = p
        return p

    def unpin(self, address: int, registered: bool) -> None:
        p = self.pinned.get(address)
        if p is None or (p.memory is None) != registered:
            raise CudaError(Result.HOST_MEMORY_NOT_REGISTERED if registered else Result.INVALID_VALUE)
        del self.pinned[address]
        if p.device is not None:
            self.free(p.device.address)

    def is_pinned(self, address: int, nbytes: int) -> bool:
        return any(p.address <= address and address + nbytes <= p.address + p.nbytes for p in self.pinned.values())

    def device_pointer(self, address: int) -> int:
        """Where the device sees pinned host memory."""
        p = self.pinned.get(address)
        if p is None:
            raise CudaError(Result.INVALID_VALUE, f"{address:#x} is not pinned memory")
        if p.device is None:
            p.device = self.allocate(p.context, p.nbytes, "mapped")
            p.device.host = p.address
            self.shared.append(p.device)
        return p.device.address

    def release(self, context: Context) -> None:
        """Everything of a context that ends."""
        for p in [p for p in self.pinned.values() if p.context is context]:
            self.unpin(p.address, p.memory is None)
        for b in [b for b in self.blocks.values() if b.context is context]:
            self.free(b.address)


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
