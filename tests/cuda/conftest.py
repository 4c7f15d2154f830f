"""The real PyCUDA on the virtual driver: `make test-cuda` runs these tests, `make test` does not collect them.

`libcuda.so.1` is built and loaded once for the process, before PyCUDA is imported; each test gets a driver of its own behind
it. Nothing here is skipped where PyCUDA is missing: the import fails and says what to do.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fluxir.runtime import cuda as runtime
from fluxir.runtime.vgpu.cuda_api import Library, VirtualCuda
from fluxir.runtime.vgpu.device import Device

MEMORY = 1 << 26  # bytes of each virtual device in these tests


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    found = Library(tmp_path_factory.mktemp("libcuda"))
    try:
        import pycuda.driver
    except ImportError as reason:
        pytest.exit(f"these tests need PyCUDA: run `make test-cuda` ({reason})", returncode=2)
    assert pycuda.driver.get_version()
    gc.collect()
    gc.freeze()  # what is there now stays: the collections of the tests below look at their own objects
    return found


class Setup:
    """PyCUDA's driver module, the virtual driver behind it, and a context that is current."""

    def __init__(self, cuda: Any, driver: VirtualCuda) -> None:
        self.cuda, self.driver = cuda, driver
        cuda.init()
        self.context: Any = None

    def open(self) -> Any:
        self.context = self.cuda.Device(0).make_context()
        return self.context


@pytest.fixture
def driver_of(library: Library) -> Iterator[Callable[..., VirtualCuda]]:
    """Makes a fresh driver with devices of the named targets and puts it behind the library."""
    made: list[VirtualCuda] = []

    def make(*targets: str, memory: int = MEMORY, eager: bool = False) -> VirtualCuda:
        made.append(VirtualCuda([Device(t, capacity=1 << 30) for t in targets or ("sm_80",)], memory, eager))
        library.connect(made[-1])
        return made[-1]

    yield make
    runtime.close_all()
    gc.collect()
    library.connect(made[-1] if made else VirtualCuda([Device()]))


@pytest.fixture(params=["late", "eager"])
def setup(driver_of: Callable[..., VirtualCuda], request: pytest.FixtureRequest) -> Iterator[Setup]:
    """One device with a current context. Everything is given back at the end, or the test fails."""
    import pycuda.driver as cuda

    s = Setup(cuda, driver_of("sm_80", eager=request.param == "eager"))
    context = s.open()
    yield s
    gc.collect()
    failed = any(c.failed for c in s.driver.handles.values() if hasattr(c, "failed"))
    leaks = s.driver.leaks()
    context.pop()
    context.detach()
    s.context = context = None
    gc.collect()
    assert failed or not leaks, leaks
    assert not s.driver.stack, "no context is current after the test"
