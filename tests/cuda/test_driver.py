"""What PyCUDA offers, on the virtual driver: devices, contexts, modules, memory, launches. Order and time: test_streams.py."""

from __future__ import annotations

import ctypes
import gc
import re
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fluxir.runtime.vgpu.cuda_api import Result, VirtualCuda
from fluxir.runtime.vgpu.cuda_api.entry import ENTRIES
from fluxir.runtime.vgpu.cuda_api.library import Library, entry_points
from tests.cuda.conftest import MEMORY, Setup
from tests.cuda.kernels import MODULE

Drivers = Callable[..., VirtualCuda]


def load(setup: Setup, text: str = MODULE) -> Any:
    return setup.cuda.module_from_buffer(text.encode() + b"\0")


# ---- the library


def test_every_symbol_that_pycuda_links_with_is_there(library: Library) -> None:
    import pycuda._driver

    table = subprocess.run(
        ["nm", "-D", "--undefined-only", pycuda._driver.__file__], capture_output=True, text=True, check=True
    )
    wanted = set(re.findall(r"U (cu[A-Z]\w*)", table.stdout))
    assert len(wanted) > 100 and not wanted - set(entry_points())


def test_unsupported_entry_points_say_so(setup: Setup) -> None:
    with pytest.raises(setup.cuda.LogicError, match="operation not supported: cuTexRefCreate"):
        setup.cuda.TextureReference()
    with pytest.raises(setup.cuda.LogicError, match="operation not supported"):
        setup.cuda.mem_get_ipc_handle(setup.cuda.mem_alloc(16))
    gc.collect()


def test_nothing_works_before_init(library: Library, driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver_of("sm_80")
    with pytest.raises(cuda.LogicError, match="initialization error"):
        cuda.Device.count()


# ---- devices


def test_devices_and_attributes(driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver_of("sm_80", "sm_90")
    cuda.init()
    assert cuda.Device.count() == 2 and cuda.get_driver_version() == 13000
    first, second = cuda.Device(0), cuda.Device(1)
    assert first.compute_capability() == (8, 0) and second.compute_capability() == (9, 0)
    assert first.name() == "fluxir virtual GPU sm_80" and first.total_memory() == MEMORY
    assert second.max_shared_memory_per_block == 48 << 10 and second.max_threads_per_block == 1024
    assert second.get_attribute(cuda.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) == 227 << 10
    assert first.warp_size == 32 and first.multiprocessor_count == 108
    assert first.compute_mode == cuda.compute_mode.DEFAULT
    assert len(first.get_attributes()) > 50
    assert first.pci_bus_id() != second.pci_bus_id() and cuda.Device(second.pci_bus_id()) == second
    assert first.can_access_peer(second) and not first.can_access_peer(first)
    with pytest.raises(cuda.LogicError, match="invalid device ordinal"):
        cuda.Device(2)


# ---- contexts


def test_contexts_are_a_stack(driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver = driver_of("sm_80", "sm_90")
    cuda.init()
    a = cuda.Device(0).make_context()
    b = cuda.Device(1).make_context()
    assert cuda.Context.get_device() == cuda.Device(1) and cuda.Context.get_current() == b
    cuda.Context.pop()
    assert cuda.Context.get_device() == cuda.Device(0)
    assert a.get_api_version() == 13000
    cuda.Context.set_limit(cuda.limit.STACK_SIZE, 4096)
    assert cuda.Context.get_limit(cuda.limit.STACK_SIZE) == 4096
    cuda.Context.set_cache_config(cuda.func_cache.PREFER_L1)
    assert cuda.Context.get_cache_config() == cuda.func_cache.PREFER_L1
    cuda.Context.enable_peer_access(b)
    with pytest.raises(cuda.LogicError, match="already enabled"):
        cuda.Context.enable_peer_access(b)
    cuda.Context.disable_peer_access(b)
    with pytest.raises(cuda.LogicError, match="not been enabled"):
        cuda.Context.disable_peer_access(b)
    cuda.Context.pop()
    with pytest.raises(cuda.LogicError, match="no currently active context"):
        cuda.Stream()
    a.detach()
    b.detach()
    del a, b
    gc.collect()
    assert not driver.handles


def test_a_context_takes_everything_with_it(driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver = driver_of("sm_80")
    cuda.init()
    context = cuda.Device(0).make_context()
    things = [cuda.mem_alloc(100), cuda.Stream(), cuda.Event(), cuda.pagelocked_empty(4, np.int32),
              cuda.module_from_buffer(MODULE.encode() + b"\0")]  # fmt: skip
    assert len(driver.leaks()) == 5
    context.pop()
    context.detach()
    assert driver.leaks() == []
    del things
    gc.collect()


def test_the_primary_context_is_shared(driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver = driver_of("sm_80")
    cuda.init()
    a, b = (cuda.Device(0).retain_primary_context() for _ in range(2))
    assert a == b and driver.retained[0] == 2
    a.push()
    memory = cuda.mem_alloc(64)
    cuda.Context.pop()
    b.push()
    assert cuda.mem_get_address_range(memory) == (int(memory), 64)
    memory.free()
    cuda.Context.pop()


# ---- modules


def test_functions_and_their_attributes(setup: Setup) -> None:
    m = load(setup)
    f, r = m.get_function("scale"), m.get_function("reverse")
    assert f.max_threads_per_block == 1024 and r.max_threads_per_block == 64
    assert f.shared_size_bytes == 0 and f.num_regs > 0 and f.local_size_bytes == 0
    assert f.get_attribute(setup.cuda.function_attribute.PTX_VERSION) == 70
    f.set_cache_config(setup.cuda.func_cache.PREFER_SHARED)
    with pytest.raises(setup.cuda.LogicError, match="named symbol not found"):
        m.get_function("nothing")


def test_globals_are_read_and_written(setup: Setup) -> None:
    cuda, m = setup.cuda, load(setup)
    address, nbytes = m.get_global("factor")
    assert nbytes == 4
    got = np.empty(1, np.float32)
    cuda.memcpy_dtoh(got, address)
    assert got[0] == 2
    cuda.memcpy_htod(address, np.float32([5]))
    x = np.arange(8, dtype=np.float32)
    m.get_function("scale")(cuda.InOut(x), np.uint32(8), block=(8, 1, 1))
    np.testing.assert_array_equal(x, 5 * np.arange(8))
    assert m.get_global("table")[1] == 16
    with pytest.raises(cuda.LogicError, match="named symbol not found"):
        m.get_global("nothing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foo bar", "a PTX JIT compilation failed: ptxas application ptx input, line"),
        (MODULE.replace("bar.sync 0", "barr.sync 0"), "unsupported toolchain.*barr"),
        (MODULE.replace("sm_80", "sm_100"), "a PTX JIT compilation failed.*sm_100"),
        (MODULE.replace("mov.u32 %r6, dynamic", "mov.u32 %r6, statics"), "PTX JIT.*statics"),
    ],
)
def test_what_is_wrong_with_a_module_is_in_its_log(setup: Setup, text: str, words: str) -> None:
    log: list[Any] = []
    with pytest.raises(setup.cuda.LogicError, match=words):
        setup.cuda.module_from_buffer(
            text.encode() + b"\0", message_handler=lambda ok, info, errors: log.append((ok, errors))
        )
    assert log[0][0] is False and log[0][1].startswith("ptxas")


def test_machine_code_is_refused(setup: Setup) -> None:
    with pytest.raises(setup.cuda.RuntimeError, match=r"no kernel image.*runs PTX"):
        setup.cuda.module_from_buffer(b"\x7fELF" + bytes(100))


def test_modules_from_files_and_linkers(setup: Setup, tmp_path: Any) -> None:
    cuda = setup.cuda
    path = tmp_path / "m.ptx"
    path.write_text(MODULE)
    assert cuda.module_from_file(str(path)).get_function("scale")
    with pytest.raises(cuda.RuntimeError, match="file not found"):
        cuda.module_from_file(str(tmp_path / "other.ptx"))
    from pycuda._driver import Linker

    for add in ("data", "file"):
        linker = Linker()
        if add == "data":
            linker.add_data(MODULE.encode(), cuda.jit_input_type.PTX, "m")
        else:
            linker.add_file(str(path), cuda.jit_input_type.PTX)
        x = np.ones(4, np.float32)
        linker.link_module().get_function("scale")(cuda.InOut(x), np.uint32(4), block=(4, 1, 1))
        assert x.tolist() == [2] * 4
    with pytest.raises(cuda.LogicError, match="not supported"):
        Linker().add_data(b"x", cuda.jit_input_type.CUBIN, "m")
    linker = Linker()
    linker.add_data(b"foo", cuda.jit_input_type.PTX, "m")
    with pytest.raises(cuda.LogicError, match="ptxas"):
        linker.link_module()
    del linker
    gc.collect()


# ---- launches


def test_launches_in_every_way(setup: Setup) -> None:
    cuda, f = setup.cuda, load(setup).get_function("scale")
    x = np.arange(40, dtype=np.float32)
    d = cuda.to_device(x)
    f(d, np.uint32(40), block=(16, 1, 1), grid=(3, 1))
    f.prepare("PI")
    f.prepared_call((3, 1), (16, 1, 1), d, 40)
    s = cuda.Stream()
    f.prepared_async_call((3, 1), (16, 1, 1), s, d, 40)
    s.synchronize()
    seconds = f.prepared_timed_call((3, 1), (16, 1, 1), d, 40)()
    assert 0 < seconds < 60
    np.testing.assert_array_equal(cuda.from_device_like(d, x), 16 * x)


def test_parameters_of_every_width(setup: Setup) -> None:
    cuda, f = setup.cuda, load(setup).get_function("mixed")
    out = np.zeros(1)
    f(cuda.Out(out), np.uint8(200), np.float64(0.5), np.uint16(65535), np.uint32(4_000_000_000), block=(1, 1, 1))
    assert out[0] == 200 + 0.5 * 65535 + 4_000_000_000


def test_dynamic_shared_memory(setup: Setup) -> None:
    cuda, f = setup.cuda, load(setup).get_function("reverse")
    x = np.arange(64, dtype=np.float32)
    f(cuda.InOut(x), block=(32, 1, 1), grid=(2, 1), shared=128)
    np.testing.assert_array_equal(x.reshape(2, 32), np.arange(64).reshape(2, 32)[:, ::-1])
    with pytest.raises(cuda.LogicError, match="dynamic shared memory"):
        f(cuda.InOut(x), block=(32, 1, 1), shared=60 << 10)
    f.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, 100 << 10)
    f(cuda.InOut(x), block=(32, 1, 1), shared=60 << 10)
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        f.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, 200 << 10)


@pytest.mark.parametrize(
    ("block", "grid", "error"),
    [((1025, 1, 1), (1, 1), "LogicError"), ((32, 32, 2), (1, 1), "LogicError"), ((1, 1, 1), (0, 1), "LogicError"),
     ((1, 1, 1), (1, 65536), "LogicError"), ((128, 1, 1), (1, 1), "LaunchError")],
)  # fmt: skip
def test_impossible_launches_are_refused_at_once(setup: Setup, block: Any, grid: Any, error: str) -> None:
    f = load(setup).get_function("reverse")
    with pytest.raises(getattr(setup.cuda, error)):
        f(setup.cuda.InOut(np.ones(4, np.float32)), block=block, grid=grid, shared=128)


def test_too_few_parameters(setup: Setup) -> None:
    f = load(setup).get_function("scale")
    f.prepare("I")
    with pytest.raises(setup.cuda.LogicError, match="12 bytes of parameters, 4 given"):
        f.prepared_call((1, 1), (1, 1, 1), 5)


def test_constant_memory(setup: Setup) -> None:
    cuda, f = setup.cuda, load(setup).get_function("look")
    out = np.zeros(4, np.int32)
    f(cuda.Out(out), block=(4, 1, 1))
    assert out.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("kernel", "words"), [("bounds", "illegal memory access.*out-of-bounds in scale"),
                                               ("align", "misaligned address.*scale"), ("stop", "launch failure.*trap")])  # fmt: skip
def test_a_kernel_that_fails_takes_the_context_with_it(setup: Setup, kernel: str, words: str) -> None:
    cuda, m = setup.cuda, load(setup)
    d = cuda.to_device(np.zeros(16, np.float32))
    with pytest.raises(cuda.Error) as e:
        if kernel == "bounds":
            m.get_function("scale")(d, np.uint32(17), block=(32, 1, 1))
        elif kernel == "align":
            m.get_function("scale")(np.intp(int(d) + 2), np.uint32(4), block=(32, 1, 1))
        else:
            m.get_function("stop")(block=(1, 1, 1))
        cuda.Context.synchronize()
    assert re.search(words, str(e.value), re.DOTALL)
    with pytest.raises(cuda.Error):
        cuda.mem_alloc(16)
    del m, d


# ---- memory


def test_allocation_and_copies(setup: Setup) -> None:
    cuda = setup.cuda
    free, total = cuda.mem_get_info()
    d = cuda.mem_alloc(1000)
    assert cuda.mem_get_info() == (free - 1000, total) and cuda.mem_get_address_range(int(d) + 10) == (int(d), 1000)
    a, b = np.arange(250, dtype=np.int32), np.empty(250, np.int32)
    cuda.memcpy_htod(d, a)
    e = cuda.mem_alloc(1000)
    cuda.memcpy_dtod(e, d, 1000)
    cuda.memcpy_dtoh(b, e)
    np.testing.assert_array_equal(a, b)
    d.free()
    assert cuda.mem_get_info() == (free - 1000, total)
    with pytest.raises(cuda.LogicError):
        d.free()


def test_copies_outside_an_allocation_are_refused(setup: Setup) -> None:
    cuda, d = setup.cuda, setup.cuda.mem_alloc(64)
    for work in (
        lambda: cuda.memcpy_htod(d, np.zeros(65, np.uint8)),
        lambda: cuda.memcpy_dtoh(np.zeros(65, np.uint8), d),
        lambda: cuda.memcpy_dtoh(np.zeros(1, np.uint8), int(d) + 64),
        lambda: cuda.memcpy_htod(12345, np.zeros(1, np.uint8)),
        lambda: cuda.memcpy_dtod(d, int(d) + 60, 8),
        lambda: cuda.memset_d8(d, 0, 65),
        lambda: cuda.memset_d32(int(d) + 2, 0, 1),
        lambda: cuda.mem_alloc(0),
    ):
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            work()


def test_out_of_memory(setup: Setup) -> None:
    cuda = setup.cuda
    with pytest.raises(cuda.MemoryError, match="out of memory"):
        cuda.mem_alloc(MEMORY + 1)
    d = cuda.mem_alloc(MEMORY)
    with pytest.raises(cuda.MemoryError):
        cuda.mem_alloc(1)
    d.free()
    cuda.mem_alloc(MEMORY).free()


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("later", [False, True])
def test_fills_of_every_width(setup: Setup, bits: int, later: bool) -> None:
    cuda, kind = setup.cuda, np.dtype(f"u{bits // 8}")
    value = (1 << bits) - 3
    d = cuda.to_device(np.zeros(40, kind))
    s = cuda.Stream()
    if later:
        getattr(cuda, f"memset_d{bits}_async")(int(d) + 4 * kind.itemsize, value, 10, s)
        getattr(cuda, f"memset_d2d{bits}_async")(int(d) + 20 * kind.itemsize, 8 * kind.itemsize, 7, 3, 2, s)
        s.synchronize()
    else:
        getattr(cuda, f"memset_d{bits}")(int(d) + 4 * kind.itemsize, value, 10)
        getattr(cuda, f"memset_d2d{bits}")(int(d) + 20 * kind.itemsize, 8 * kind.itemsize, 7, 3, 2)
    want = np.zeros(40, kind)
    want[4:14] = value
    want[20:23] = want[28:31] = 7
    np.testing.assert_array_equal(cuda.from_device(d, 40, kind), want)


def test_pitched_memory_and_copies_in_two_dimensions(setup: Setup) -> None:
    cuda = setup.cuda
    a = np.arange(6 * 10, dtype=np.float32).reshape(6, 10)
    d, pitch = cuda.mem_alloc_pitch(40, 6, 4)
    assert pitch == 512
    up = cuda.Memcpy2D()
    up.set_src_host(a)
    up.set_dst_device(d)
    up.src_pitch, up.dst_pitch, up.width_in_bytes, up.height = 40, pitch, 40, 6
    up(aligned=True)
    part = np.zeros((3, 4), np.float32)
    down = cuda.Memcpy2D()
    down.set_src_device(d)
    down.set_dst_host(part)
    down.src_pitch, down.dst_pitch, down.width_in_bytes, down.height = pitch, 16, 16, 3
    down.src_x_in_bytes, down.src_y = 8, 2
    down(cuda.Stream())
    np.testing.assert_array_equal(part, a[2:5, 2:6])
    down.width_in_bytes = 600
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        down(aligned=False)


def test_copies_in_three_dimensions(setup: Setup) -> None:
    cuda = setup.cuda
    a = np.arange(3 * 4 * 5, dtype=np.int32).reshape(3, 4, 5)
    d = cuda.to_device(a)
    out = np.zeros((2, 2, 3), np.int32)
    c = cuda.Memcpy3D()
    c.set_src_device(d)
    c.set_dst_host(out)
    c.src_pitch, c.src_height, c.dst_pitch, c.dst_height = 20, 4, 12, 2
    c.src_x_in_bytes, c.src_y, c.src_z = 4, 2, 1
    c.width_in_bytes, c.height, c.depth = 12, 2, 2
    c()
    np.testing.assert_array_equal(out, a[1:3, 2:4, 1:4])
    out[:] = 0
    c(cuda.Stream())
    np.testing.assert_array_equal(out, a[1:3, 2:4, 1:4])


def test_copies_between_devices(driver_of: Drivers) -> None:
    import pycuda.driver as cuda

    driver_of("sm_80", "sm_90")
    cuda.init()
    a = np.arange(100, dtype=np.int16)
    first = cuda.Device(0).make_context()
    x = cuda.to_device(a)
    second = cuda.Device(1).make_context()
    y, b = cuda.mem_alloc(200), np.empty_like(a)
    cuda.memcpy_peer(y, x, 200, second, first)
    cuda.memcpy_dtoh(b, y)
    np.testing.assert_array_equal(a, b)
    cuda.memset_d8(y, 0, 200)
    s = cuda.Stream()
    cuda.memcpy_peer_async(y, x, 200, second, first, s)
    s.synchronize()
    cuda.memcpy_dtoh(b, y)
    np.testing.assert_array_equal(a, b)
    y.free()
    del s
    cuda.Context.pop()
    x.free()
    cuda.Context.pop()
    first.detach()
    second.detach()


def test_memory_that_both_sides_see(setup: Setup) -> None:
    cuda, f = setup.cuda, load(setup).get_function("scale")
    shared = cuda.managed_empty(8, np.float32, mem_flags=cuda.mem_attach_flags.GLOBAL)
    mapped = cuda.pagelocked_empty(8, np.float32, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
    for a in (shared, mapped):
        a[:] = np.arange(8)
        at = np.intp(a.base.get_device_pointer())
        f(at, np.uint32(8), block=(8, 1, 1))
        cuda.Context.synchronize()
        assert a.tolist() == [2 * i for i in range(8)]
        a[0] = 50
        f(at, np.uint32(8), block=(8, 1, 1))
        cuda.Context.synchronize()
        assert a.tolist() == [100, *(4 * i for i in range(1, 8))]
    assert cuda.pagelocked_empty(3, np.int8).base.get_flags() == 3
    shared.base.attach(cuda.mem_attach_flags.GLOBAL)
    del shared, mapped, a
    gc.collect()


def test_registered_host_memory(setup: Setup, library: Library) -> None:
    """By the entry points themselves: PyCUDA 2026.1 cannot register an array under numpy 2."""
    cuda, dll = setup.cuda, library.dll
    a = np.zeros(1000, np.float32)
    at, size = ctypes.c_size_t(a.ctypes.data), ctypes.c_size_t(a.nbytes)
    assert dll.cuMemHostRegister_v2(at, size, 2) == 0
    assert dll.cuMemHostRegister_v2(at, size, 2) == Result.HOST_MEMORY_ALREADY_REGISTERED
    d, s = cuda.to_device(np.zeros_like(a)), cuda.Stream()
    cuda.memcpy_htod_async(d, a, s)
    a[:] = 7  # read when the copy runs, since the memory is pinned
    s.synchronize()
    late = not setup.driver.eager
    assert cuda.from_device_like(d, a)[0] == (7 if late else 0)
    assert dll.cuMemHostUnregister(at) == 0 and dll.cuMemHostUnregister(at) == Result.HOST_MEMORY_NOT_REGISTERED


def test_memory_pools(setup: Setup) -> None:
    from pycuda.tools import DeviceMemoryPool, PageLockedMemoryPool

    cuda, calls = setup.cuda, setup.driver.calls
    pool = DeviceMemoryPool()
    for _ in range(5):
        a, b = pool.allocate(1000), pool.allocate(3000)
        cuda.memset_d8(int(a), 1, 1000)
        del a, b
    assert calls["cuMemAlloc_v2"] == 2 and pool.held_blocks == 2
    pool.free_held()
    assert pool.held_blocks == 0 and setup.driver.memory.used(0) == 0
    with pytest.raises(cuda.MemoryError):
        pool.allocate(2 * MEMORY)
    pinned = PageLockedMemoryPool()
    for _ in range(5):
        x = pinned.allocate((100,), np.float32)
        x[:] = 1
        del x
    assert calls["cuMemHostAlloc"] == 1
    pinned.stop_holding()
    del pool, pinned
    gc.collect()


def test_gpuarray_without_kernels(setup: Setup) -> None:
    from pycuda import gpuarray

    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = gpuarray.to_gpu(a)
    np.testing.assert_array_equal(x.get(), a)
    np.testing.assert_array_equal(x[1:3].get(), a[1:3])
    assert x.__cuda_array_interface__["shape"] == (3, 4)
    y = x.copy()
    x.set(a + 1)
    np.testing.assert_array_equal(y.get(), a)


def test_how_many_entry_points_there_are() -> None:
    assert len(ENTRIES) >= 120 and len(entry_points()) >= 155
