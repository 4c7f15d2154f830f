"""The verb ``bundle``: a model as a C library, for CPUs or for NVIDIA GPUs, that needs neither Python nor fluxir."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from .. import config
from ..bundle import Case, Program, c_bundle, cuda_bundle
from ..driver import Lowered
from ..errors import FluxError, error
from ..passes import numeric
from ..target import host, parse_target
from .arrays import dim_sizes
from .common import Output, bytes_text, table, verb
from .files import make_directory, write_bytes
from .models import ENTRY, TRUST, load_file, lowered
from .run import input_values, make_inputs

__all__ = ["command"]

_HELP = """Make a C library of MODEL (.onnx, .py, .fx or .fxb) in the folder OUT.

With --c: header, C source, an object file with the machine code of every --target (default: x86-64-v3 and -v4, or NEON; the
best is chosen at run time), weights, CMake file, and a test program with expected results. It needs the C library and
POSIX threads.

With --cuda: the PTX of every --target (default: sm_80), weights, launch manifest, and a launcher in C that loads the CUDA
driver itself.

Sizes that the model leaves open stay open: callers give them. The test program runs on random arguments of small sizes,
or on what --input and --test-dim say. --test builds and runs it with the C compiler of this machine.
"""


@verb("bundle", settings=("opt_level", "accuracy", "tuned", "num_threads", "cache", "cache_dir"), help=_HELP)
@click.argument("file", metavar="MODEL", type=click.Path(dir_okay=False))
@click.option("--c", "kind", flag_value="c", help="A library for CPUs.")
@click.option("--cuda", "kind", flag_value="cuda", help="A library for NVIDIA GPUs.")
@click.option("--output", "-o", "out", required=True, metavar="OUT", help="The folder to write.")
@click.option("--target", "targets", multiple=True, metavar="TARGET", help="A target; may be given several times.")
@click.option("--name", metavar="NAME", help="What names in C begin with (default: the model's).")
@click.option(
    "--weights",
    type=click.Choice(["embed", "file"]),
    default="embed",
    show_default=True,
    help="Weights in the object file, or in a file of their own that is mapped; --cuda always has a file.",
)
@click.option(
    "--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="Compile for this size of a symbol only, such as B=32."
)
@click.option(
    "--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An argument of the test, as of `run`."
)
@click.option("--test-dim", "test_dims", multiple=True, metavar="SYMBOL=SIZE", help="A size of the test.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of random arguments."
)
@click.option("--test", is_flag=True, help="Build the bundle with cc and run its test; for --c.")
@TRUST
@ENTRY
def command(
    output: Output,
    file: str,
    kind: str | None,
    out: str,
    targets: tuple[str, ...],
    name: str | None,
    weights: str,
    dims: tuple[str, ...],
    inputs: tuple[str, ...],
    test_dims: tuple[str, ...],
    seed: int,
    test: bool,
    entry: str | None,
    trust: bool,
) -> None:
    if kind is None:
        raise error("FX0906", "a bundle is for C on a CPU or for a GPU", help="give --c or --cuda")
    if test and kind == "cuda":
        raise error("FX0906", "--test needs a GPU, which this command does not look for", help="build the test there")
    output.progress(f"reading {file}")
    program = lowered(load_file(file, trust), entry, dim_sizes(dims))
    made = []
    for target in targets or _default_targets(kind):
        output.progress(f"compiling for {target}")
        compiled = program.compile(parse_target(target))
        made.append(Program(compiled.spec, compiled.code, compiled.constants))
    output.progress("running")
    case = _case(program, inputs, dim_sizes(test_dims), seed)
    stem = name or os.path.splitext(os.path.basename(file))[0]
    files = cuda_bundle(made, stem, case) if kind == "cuda" else c_bundle(made, stem, case, weights == "embed")
    make_directory(out)
    for path, content in files.items():
        write_bytes(os.path.join(out, path), content)
    ran = _tested(output, out, [n for n in files if n.endswith((".c", ".o"))]) if test else None
    data: dict[str, Any] = {
        "file": file,
        "targets": [p.target for p in made],
        "folder": out,
        "files": {path: len(content) for path, content in files.items()},
        "inputs": made[0].spec["inputs"],
        "outputs": made[0].spec["outputs"],
        **({"test": ran} if ran is not None else {}),
    }

    def text() -> str:
        rows = [(f"  {path}", bytes_text(len(content))) for path, content in files.items()]
        head = f"{file} for {', '.join(data['targets'])}, in {out}"
        return "\n".join([head, table(rows, right=(1,)), *([ran.rstrip()] if ran is not None else [])])

    output.result(data, text)


def _default_targets(kind: str) -> Sequence[str]:
    if kind == "cuda":
        return ("sm_80",)
    return ("cpu:aarch64+neon",) if host().machine == "aarch64" else ("cpu:x86-64-v3", "cpu:x86-64-v4")


def _case(program: Lowered, values: Sequence[str], sizes: Mapping[str, int], seed: int) -> Case:
    """What the test program runs on, and what this machine's own code makes of it."""
    rng = np.random.default_rng(seed)
    compiled = program.compile("cpu")
    # Not a size of 0, where there is another.
    found = [numeric.choose_sizes(program.module, program.module.entry, rng) for _ in range(8)]
    chosen = max(found, key=lambda one: min(one.values(), default=0)) | dict(sizes)
    names = [t["name"] for t in compiled.spec["inputs"]]
    given = make_inputs(
        compiled.spec, {**dict.fromkeys(names, "random"), **input_values(compiled.spec, values)}, chosen, seed
    )
    from ..runtime import arguments

    dims = arguments.solve(compiled.spec, [a.shape for a in given])
    results = compiled.program.call_flat([a.copy() for a in given])
    return Case(dims, given, results, "fluxir computed on the CPU of the machine that made this")


def _tested(output: Output, folder: str, sources: Sequence[str]) -> str:
    """What the test program writes. FX0417 where it fails, FX0815 where there is no C compiler or it does not compile."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise error("FX0815", "there is no C compiler (cc or gcc) to build the bundle with", help="install gcc")
    output.progress("building")
    program = os.path.join(os.path.abspath(folder), "test")
    line = [compiler, "-O2", "-std=gnu11", "-o", program, *sources, "-lpthread", "-lm"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise error("FX0815", f"the bundle does not compile: {done.stderr.strip()[:2000]}")
    threads = str(config.get().threads())
    try:
        ran = subprocess.run([program, "--threads", threads], cwd=folder, capture_output=True, text=True, check=False)
    finally:
        os.unlink(program)
    if ran.returncode:
        raise _failed(ran)
    return ran.stdout


def _failed(ran: subprocess.CompletedProcess[str]) -> FluxError:
    return error(
        "FX0417", f"the bundle's test fails with status {ran.returncode}: {(ran.stderr + ran.stdout).strip()[-1000:]}"
    )
