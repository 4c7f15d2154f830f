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

_HELP = """Compile FILE (.py or .fx) for --target.

For a CPU target OUT is an artifact, which `fluxir run` executes without the compiler (default: NAME.fxb). For a GPU
target OUT is a directory with the PTX, manifest.json (kernels, launches, buffers), constants.safetensors and the
program; an OUT that ends in .fxb makes one artifact of them instead.

One artifact serves all sizes of a symbolic dimension; --dim makes one for a single size, which may be faster.
"""


@verb(
    "compile",
    settings=("target", "opt_level", "accuracy", "tuned", "verify", "dump_dir", "cache", "cache_dir"),
    help=_HELP,
)
@click.argument("file", type=click.Path(dir_okay=False))
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
    out: str | None,
    dims: tuple[str, ...],
    passes: str | None,
    assemble: bool,
    entry: str | None,
    trust: bool,
) -> None:
    sizes = dim_sizes(dims)
    target = parse_target(config.get().target)
    stem = os.path.splitext(os.path.basename(file))[0]
    path = out if out is not None else f"{stem}.fxb" if target.kind == "cpu" else f"{stem}-{target.name}"
    if target.kind == "cpu" and not path.endswith(".fxb"):
        raise error("FX0906", f"the artifact is to be called {path!r}", help="give it a name that ends in .fxb")
    if target.kind == "cpu" and assemble:
        raise error("FX0904", f"--assemble is for GPU targets, and {target.name} is a CPU")
    begin = time.perf_counter()
    output.progress(f"reading {file}")
    program = lowered(load_file(file, trust), entry, sizes)
    traced = time.perf_counter()
    output.progress(f"compiling for {target.name}")
    compiled = program.compile(target, passes=passes)
    done = time.perf_counter()
    if path.endswith(".fxb"):
        compiled.save(path)
        files = [path]
    else:
        files = write_gpu_directory(path, compiled)
    assembled: list[dict[str, Any]] = []
    if assemble:
        from ..codegen import checks

        output.progress("assembling")
        assembled = [asdict(kernel) for kernel in checks.assemble(compiled.code.decode(), target.name)]
    written = {name: os.path.getsize(name) for name in files}
    data: dict[str, Any] = {
        "file": file,
        "target": target.name,
        "dims": sizes,
        "cached": compiled.build is None,
        "trace_ms": round((traced - begin) * 1e3, 3),
        "compile_ms": round((done - traced) * 1e3, 3),
        "files": written,
        "inputs": compiled.spec["inputs"],
        "outputs": compiled.spec["outputs"],
        **({"assembled": assembled} if assemble else {}),
    }

    def text() -> str:
        how = "from the cache" if data["cached"] else "compiled"
        head = f"{file} for {target.name}: {how} in {data['compile_ms']:.0f} ms (traced in {data['trace_ms']:.0f} ms)"
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
