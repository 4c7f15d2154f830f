"""The verb ``compile``: a model file to an artifact, or for a GPU to PTX with its launch manifest."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .. import config
from ..errors import error
from ..target import parse_target
from .arrays import dim_sizes
from .common import Output, bytes_text, table, verb
from .files import make_directory, write_bytes, write_text
from .models import ENTRY, TRUST, load_file, lowered

if TYPE_CHECKING:
    from ..driver import Compiled

__all__ = ["command", "write_gpu_directory"]

_HELP = """Compile FILE (.py, .fx, .onnx or .fxb) for --target.

For a CPU target OUT is an artifact, which `fluxir run` executes without the compiler (default: NAME.fxb). For a GPU
target OUT is a directory with the PTX, manifest.json (kernels, launches, buffers), constants.safetensors and the
program; an OUT that ends in .fxb makes one artifact of them instead. --target may be given several times: then one
artifact holds the program for each, with the same weights, and who runs it takes the best that the machine has.

One artifact serves all sizes of a symbolic dimension; --dim makes one for a single size, which may be faster.
"""


@verb(
    "compile",
    settings=("opt_level", "accuracy", "tuned", "verify", "dump_dir", "cache", "cache_dir"),
    help=_HELP,
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--target", "targets", multiple=True, metavar="TARGET", help="What to compile for (see `fluxir targets`)."
)
@click.option("--output", "-o", "out", metavar="OUT", help="The artifact, or for GPU targets the directory, to write.")
@click.option(
    "--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="Compile for this size of a symbol only, such as B=32."
)
@click.option("--passes", metavar="LIST", help="The tensor-level passes to run in place of the default ones.")
@click.option(
    "--assemble", is_flag=True, help="For a GPU target, also assemble the PTX with ptxas and show what it says."
)
@TRUST
@ENTRY
def command(
    output: Output,
    file: str,
    targets: tuple[str, ...],
    out: str | None,
    dims: tuple[str, ...],
    passes: str | None,
    assemble: bool,
    entry: str | None,
    trust: bool,
) -> None:
    sizes = dim_sizes(dims)
    chosen = [parse_target(name) for name in targets or (config.get().target,)]
    target = chosen[0]
    stem = os.path.splitext(os.path.basename(file))[0]
    one_file = target.kind == "cpu" or len(chosen) > 1
    path = out if out is not None else f"{stem}.fxb" if one_file else f"{stem}-{target.name}"
    if one_file and not path.endswith(".fxb"):
        raise error("FX0906", f"the artifact is to be called {path!r}", help="give it a name that ends in .fxb")
    if assemble and all(t.kind == "cpu" for t in chosen):
        raise error("FX0904", f"--assemble is for GPU targets, and {target.name} is a CPU")
    begin = time.perf_counter()
    output.progress(f"reading {file}")
    program = lowered(load_file(file, trust), entry, sizes)
    traced = time.perf_counter()
    made = []
    for t in chosen:
        output.progress(f"compiling for {t.name}")
        made.append(program.compile(t, passes=passes))
    compiled = made[0]
    done = time.perf_counter()
    if path.endswith(".fxb"):
        compiled.save(path, *made[1:])
        files = [path]
    else:
        files = write_gpu_directory(path, compiled)
    assembled: list[dict[str, Any]] = []
    if assemble:
        from ..codegen import checks

        output.progress("assembling")
        for c in made:
            if c.target.kind != "cpu":
                assembled += [asdict(kernel) for kernel in checks.assemble(c.code.decode(), c.target.name)]
    written = {name: os.path.getsize(name) for name in files}
    data: dict[str, Any] = {
        "file": file,
        "target": target.name,
        "targets": [t.name for t in chosen],
        "dims": sizes,
        "cached": all(c.build is None for c in made),
        "trace_ms": round((traced - begin) * 1e3, 3),
        "compile_ms": round((done - traced) * 1e3, 3),
        "files": written,
        "inputs": compiled.spec["inputs"],
        "outputs": compiled.spec["outputs"],
        **({"assembled": assembled} if assemble else {}),
    }

    def text() -> str:
        how = "from the cache" if data["cached"] else "compiled"
        times = f"{how} in {data['compile_ms']:.0f} ms (traced in {data['trace_ms']:.0f} ms)"
        head = f"{file} for {', '.join(data['targets'])}: {times}"
        kernels = [table([tuple(k.values()) for k in assembled], list(assembled[0]))] if assembled else []
        return "\n".join(
            [head, table([(f"  {name}", bytes_text(size)) for name, size in written.items()], right=(1,)), *kernels]
        )

    output.result(data, text)


def write_gpu_directory(path: str, compiled: Compiled) -> list[str]:
    """Write PTX, manifest, constants and program of ``compiled`` to the directory ``path``; the files written.

    Raises FX0804 where they cannot be written.
    """
    from ..runtime.safetensors import save_safetensors

    make_directory(path)
    names = {
        name: os.path.join(path, name)
        for name in ("module.ptx", "manifest.json", "constants.safetensors", "program.fx")
    }
    write_bytes(names["module.ptx"], compiled.code)
    write_text(names["manifest.json"], json.dumps(compiled.spec, indent=1, sort_keys=True) + "\n")
    constants = {entry["name"]: array for entry, array in zip(compiled.spec.get("constants", []), compiled.constants)}
    save_safetensors(names["constants.safetensors"], constants)
    write_text(names["program.fx"], compiled.texts["program.fx"])
    return list(names.values())
