"""`python -m fluxir.runtime.vgpu.cuda_api [--device sm_80]... [--memory BYTES] [--eager] SCRIPT [ARGUMENTS]`: run a CUDA program
(one that uses PyCUDA, say) on virtual GPUs."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from fluxir.errors import FluxError

from .library import install


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fluxir.runtime.vgpu.cuda_api", description="Run a script on virtual GPUs."
    )
    parser.add_argument(
        "--device", action="append", metavar="sm_NN", help="an architecture for each device (default: sm_80)"
    )
    parser.add_argument("--memory", type=int, default=1 << 33, metavar="BYTES", help="of each device")
    parser.add_argument("--eager", action="store_true", help="run work at once, not when something waits for it")
    parser.add_argument("script", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    given = parser.parse_args()
    try:
        install(*(given.device or ()), memory=given.memory, eager=given.eager)
    except FluxError as problem:
        sys.exit(problem.render())
    sys.argv = [given.script, *given.arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(given.script))
    runpy.run_path(given.script, run_name="__main__")


main()
