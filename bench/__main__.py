"""`python -m bench [SUBJECT ...] [--quick] [--out DIR]`: run benchmarks, print tables, write JSON and Markdown."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from bench.measure import RESULTS, clean_environment

SUBJECTS = {
    "overhead": "time per call of an 8-element add, against other libraries that are installed",
    "compile": "compile time against program size, with the fitted exponent",
    "compile_models": "compile times of whole models, cold and cached, beside torch.compile and JAX",
    "cpu": "every row of work beside numpy, torch, jax, onnxruntime and numba, on 1 and 2 threads (its own --help)",
    "models": "trained models of PyPI packages beside onnxruntime: agreement, time, loading, memory (`make models` first)",
    "startup": "import fluxir, fluxir --version",
    "grad": "differentiation: run time, ops, compile time, time to the first gradient",
    "gpu_kernels": "our GPU kernels beside Triton's and nvcc's, counted on the virtual GPU",
    "size": "size of the base install",
    "vgpu": "thread instructions per second of the virtual GPU's two executors",
}


def main(argv: list[str] | None = None) -> int:
    about = "\n".join(f"  {name:10} {doc}" for name, doc in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure FluxIR.", epilog=f"subjects:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: a minute instead of ten")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: bench/results)")
    options, rest = parser.parse_known_args(argv)
    if rest and options.subjects != ["cpu"]:
        parser.error(f"unknown option {rest[0]}")
    unknown = [s for s in options.subjects if s not in SUBJECTS]
    if unknown:
        parser.error(f"there is no subject {unknown[0]}; subjects are {', '.join(SUBJECTS)}")
    if clean_environment() != dict(os.environ) and argv is None:
        # numpy reads these variables when it is loaded: start again without them.
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], clean_environment())
    for name in options.subjects or SUBJECTS:
        module = importlib.import_module(f"bench.{name}")
        if name == "cpu":
            print(module.main(rest, options.quick, options.out), flush=True)
        else:
            print(module.run(options.quick).write(name, options.out), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
