"""Builds PyCUDA's wheel on a machine without CUDA, once, and keeps it: what `make test-cuda` installs.

    python tools/pycuda_wheel.py            print the path of the wheel, building it first where there is none

PyCUDA is published as source. The build needs the CUDA headers, which the wheels `nvidia-cuda-runtime` and
`nvidia-cuda-crt` bring (extra `test`), a C++ compiler, and a `libcuda.so` to link with, for which an empty library does:
the real one, or the one of `tests/cuda`, is found when the extension is loaded. cuRAND is left out. Invariants: nothing
outside the cache and a temporary folder is written; a wheel is moved into the cache whole or not at all; the
file name of the cache entry holds all that the wheel depends on.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

VERSION = "2026.1"

PROFILER = """\
/* The two functions of CUDA's profiler header that PyCUDA wraps: the wheels with the headers leave it out. */
#pragma once
#include <cuda.h>
#ifdef __cplusplus
extern "C" {
#endif
CUresult CUDAAPI cuProfilerInitialize(const char *config, const char *output, int mode);
CUresult CUDAAPI cuProfilerStart(void);
CUresult CUDAAPI cuProfilerStop(void);
#ifdef __cplusplus
}
#endif
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
"""

PARALLEL = """\
# Put in front of PyCUDA's setup.py: the files of an extension are compiled side by side.
def _parallel(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
              extra_postargs=None, depends=None):
    import os
    from concurrent.futures import ThreadPoolExecutor
    macros, objects, extra, options, build = self._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs)
    flags = self._get_cc_args(options, debug, extra_preargs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the largest files first
        todo = sorted(build, key=lambda o: "wrap_cudadrv" not in o)
        list(pool.map(lambda o: self._compile(o, build[o][0], build[o][1], flags, extra, options), todo))
    return objects
import setuptools
from distutils import ccompiler
ccompiler.CCompiler.compile = _parallel
"""


class BuildError(Exception):
    """What is missing, or what the build said."""


def headers() -> Path:
    """The folder with `cuda.h`: that of the installed wheels, else of a CUDA toolkit."""
    found = find_spec("nvidia")
    roots = [Path(p) for p in (found.submodule_search_locations or [])] if found else []
    places = [p.parent for root in roots for p in sorted(root.glob("*/include/cuda.h"))]
    places += [Path("/usr/local/cuda/include")]
    for place in places:
        if (place / "cuda.h").exists():
            return place
    raise BuildError("cuda.h was not found: pip install nvidia-cuda-runtime nvidia-cuda-crt")


def cuda_version(include: Path) -> str:
    """`13050` for CUDA 13.5, as `cuda.h` says."""
    found = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", (include / "cuda.h").read_text(errors="replace"))
    return found[1] if found else "0"


def place(include: Path) -> Path:
    """Where the wheel is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    return cache / "fluxir" / "wheels" / f"pycuda-{VERSION}-{python}-{platform.machine()}-cuda{cuda_version(include)}"


def run(command: list[str], folder: Path, log: Path) -> None:
    with log.open("a") as out:
        done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise BuildError(f"{' '.join(command[:6])} failed:\n{tail}")


def build(include: Path, folder: Path) -> Path:
    """The wheel, made in `folder`."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or shutil.which("gcc") is None:
        raise BuildError("PyCUDA is built from source, and there is no C++ compiler here: install gcc and g++")
    log, pip = folder / "log", [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "download", "--no-deps", "--no-binary", "pycuda", f"pycuda=={VERSION}"], folder, log)
    with tarfile.open(next(folder.glob("pycuda-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(p for p in folder.glob("pycuda-*") if p.is_dir())
    stub = folder / "stub"
    stub.mkdir()
    (stub / "cudaProfiler.h").write_text(PROFILER)
    library = ["-Wl,-soname,libcuda.so.1", "-o", str(stub / "libcuda.so")]
    run([compiler, "-shared", "-x", "c", "/dev/null", *library], folder, log)
    (source / "siteconf.py").write_text(
        f"CUDA_INC_DIR = [{str(include)!r}, {str(stub)!r}]\n"
        f"CUDADRV_LIB_DIR = [{str(stub)!r}]\n"
        "CUDA_ENABLE_CURAND = False\n"
        "CXXFLAGS = ['-O1', '-g0', '-w']\n"  # the wrapper's speed is no matter, its compile time is
        "LDFLAGS = ['-Wl,--no-as-needed']\n"
    )
    setup = source / "setup.py"
    first = "from __future__ import annotations\n"
    setup.write_text(setup.read_text().replace(first, first + PARALLEL, 1))
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "wheels"), str(source)], folder, log)
    return next((folder / "wheels").glob("*.whl"))


def wheel() -> Path:
    """The path of the wheel, from the cache or freshly built. `BuildError` where it cannot be built."""
    include = headers()
    home = place(include)
    kept = sorted(home.glob("*.whl"))
    if kept:
        return kept[0]
    print(f"building PyCUDA {VERSION} from source, once (3 to 6 minutes); it is kept in {home}", file=sys.stderr)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fluxir-pycuda-") as name:
        made = build(include, Path(name))
        home.mkdir(parents=True, exist_ok=True)
        partial = home / f".{os.getpid()}"
        shutil.copy(made, partial)
        partial.rename(home / made.name)
    print(f"built in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return home / made.name


if __name__ == "__main__":
    try:
        print(wheel())
    except BuildError as reason:
        sys.exit(f"make test-cuda: {reason}")
