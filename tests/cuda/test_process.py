"""Whole processes: scripts on virtual GPUs from start to exit, and the examples of docs/gpu.md."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs.run import fences
from fluxir.runtime.vgpu.cuda_api import VirtualCuda
from tests.cuda.kernels import MODULE

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, source: str, *flags: str, before: str = "") -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a script on virtual GPUs."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    (tmp_path / "m.ptx").write_text(MODULE)
    command = [sys.executable, "-m", "fluxir.runtime.vgpu.cuda_api", *flags, str(script), "7"]
    path = os.pathsep.join(p for p in (str(ROOT), *sys.path) if p)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    return done.returncode, done.stdout, done.stderr


def test_a_script_of_pycuda_runs_unchanged_and_ends_cleanly(tmp_path: Path) -> None:
    status, out, problems = run(
        tmp_path,
        """
        import sys
        import numpy as np
        import pycuda.autoinit
        import pycuda.driver as cuda

        m = cuda.module_from_file("m.ptx")
        x = np.arange(int(sys.argv[1]), dtype=np.float32)
        m.get_function("scale")(cuda.InOut(x), np.uint32(len(x)), block=(32, 1, 1))
        kept = [cuda.mem_alloc(100), cuda.Stream(), cuda.pagelocked_empty(3, np.int8)]
        print(pycuda.autoinit.device.name(), cuda.Device.count(), x.tolist())
        """,
        "--device", "sm_90", "--device", "sm_80",
    )  # fmt: skip
    assert (status, problems) == (0, "")
    assert out == "fluxir virtual GPU sm_90 2 [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]\n"


def test_a_program_of_ours_that_is_never_closed_ends_cleanly(tmp_path: Path) -> None:
    status, out, problems = run(
        tmp_path,
        """
        import numpy as np
        import fluxir as fx
        from fluxir import config
        from fluxir.runtime import cuda

        code = fx.jit(lambda x: fx.exp(x) @ x).lower(fx.f32[8, 8]).compile("sm_80")
        program = cuda.load_program(code.spec, code.code, code.constants)
        x = np.eye(8, dtype=np.float32)
        stays = program(cuda.device_put(x))
        print(program(x).shape, stays)
        """,
    )
    assert (status, problems) == (0, "")
    assert out == "(8, 8) DeviceArray(float32[8, 8] on cuda:0)\n"


def test_a_finding_ends_a_script_with_its_words(tmp_path: Path) -> None:
    status, _, problems = run(
        tmp_path,
        """
        import numpy as np
        import pycuda.autoinit
        import pycuda.driver as cuda

        x = cuda.to_device(np.zeros(8, np.float32))
        cuda.module_from_file("m.ptx").get_function("scale")(x, np.uint32(9), block=(32, 1, 1))
        pycuda.autoinit.context.synchronize()
        """,
        "--eager",
    )
    assert status == 1
    assert (
        "an illegal memory access was encountered: out-of-bounds in scale, block (0, 0, 0), thread (8, 0, 0)"
        in problems
    )


def test_another_driver_is_never_replaced(tmp_path: Path) -> None:
    other = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(other)], check=True)
    status, out, _ = run(
        tmp_path,
        f"""
        import ctypes
        from fluxir.errors import FluxError
        from fluxir.runtime.vgpu.cuda_api import Library
        from pathlib import Path

        ctypes.CDLL({str(other)!r})
        try:
            Library(Path("elsewhere"))
        except FluxError as e:
            print(e.code)
        """,
    )
    assert (status, out) == (0, "FX0712\n")


def test_without_gcc_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxir.errors import FluxError
    from fluxir.runtime.vgpu.cuda_api import library

    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FluxError, match="FX0712") as e:
        library.build(tmp_path)
    assert e.value.help == "install gcc"


def test_the_examples_of_the_page_say_what_it_says(driver_of: Callable[..., VirtualCuda]) -> None:
    driver_of("sm_80")
    names: dict[str, Any] = {}
    said, compared = "", 0
    for block in fences((ROOT / "docs" / "gpu.md").read_text()):
        if block.info == "py cuda":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * block.start + block.text, "gpu.md", "exec"), names)
            said = out.getvalue()
        elif block.info == "text cuda":
            assert block.text == said
            compared += 1
    assert compared >= 2
    names.clear()
