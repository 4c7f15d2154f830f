"""The verb ``run``: execute an artifact or a model on arrays.

Invariant: running an artifact imports nothing of the compiler.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import config
from ..errors import error
from ..runtime import arguments, sizes
from ..runtime.devices import load_artifact, load_program
from ..runtime.launch import GpuProgram
from . import sandbox
from .array_files import RAW, members, read_file, read_raw, write_files
from .arrays import assignments, describe, dim_sizes, generate, summary
from .common import Output, table, verb
from .profiles import profile_text, ptxas_registers

if TYPE_CHECKING:
    from ..runtime.program import Program

__all__ = ["command", "input_values", "make_inputs"]

_HELP = """Run FILE, an artifact (.fxb) or a model (.py, .fx or .onnx, compiled first), on arrays.

Inputs are NAME=@FILE, NAME=random, NAME=zeros, NAME=ones or NAME=NUMBER. FILE is an array of numpy (.npy), one of several
(.npz, .safetensors; FILE:KEY where it has another name there), or bytes without a head (.raw, .bin). @FILE without a name
stands for every input that a .npz or .safetensors file has an array for.

Outputs are NAME=@FILE in the same forms, @FILE for all, or NAME=- to print all values; without --output a summary of each
is printed. Example:

fluxir run digits.fxb --input x=@images.npy --output y=@out.npy
"""


@verb(
    "run",
    settings=(
        "device",
        "sanitizer",
        "gpu_graphs",
        "gpu_sync",
        "num_threads",
        "target",
        "opt_level",
        "accuracy",
        "tuned",
        "cache",
        "cache_dir",
    ),
    help=_HELP,
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="The value of an input.")
@click.option("--output", "-o", "outputs", multiple=True, metavar="NAME=@FILE", help="Where an output goes.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="The size of generated inputs, such as B=32.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of random inputs.")
@click.option(
    "--repeat", default=1, show_default=True, type=click.IntRange(1, 10**9), help="Run this often, and print the times."
)
@click.option("--entry", metavar="NAME", help="The entry point, where the file has several.")
@click.option(
    "--profile",
    is_flag=True,
    help="With --device vgpu: what each kernel did, and lower bounds of its time on real GPUs.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Also run lowered IR (a dump of a later stage), whose loads and stores are not checked.",
)
def command(
    output: Output,
    file: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dims: tuple[str, ...],
    seed: int,
    repeat: int,
    entry: str | None,
    profile: bool,
    trust: bool,
) -> None:
    if profile and not config.get().device.startswith("vgpu"):
        raise error(
            "FX0905", f"--profile counts on the virtual GPU, not on {config.get().device}", help="add --device vgpu"
        )
    program = _load(output, file, entry, trust, dim_sizes(dims))
    sandbox.lift()
    given = make_inputs(program.spec, input_values(program.spec, inputs), dim_sizes(dims), seed)
    wanted = _wanted(program.spec, outputs)
    times = []
    results: list[Any] = []
    device: Any = program.driver if isinstance(program, GpuProgram) else None
    for turn in range(repeat):
        if profile:
            device.profiling, device.reports = True, []  # of several runs the last one counts
        output.progress(f"run {turn + 1} of {repeat}")
        begin = time.perf_counter()
        results = program.call_flat(given)
        times.append(time.perf_counter() - begin)
    named = dict(zip([one["name"] for one in program.spec["outputs"]], results))
    write_files({name: (path, named[name]) for name, path in wanted.items() if path != "-"})
    data = {
        "file": file,
        "device": config.get().device,
        "runs": repeat,
        "first_ms": round(times[0] * 1e3, 4),
        "median_ms": round(statistics.median(times) * 1e3, 4),
        "outputs": {
            name: {**summary(array), **({"file": wanted[name]} if wanted.get(name, "-") != "-" else {}),
                   **({"values": array.tolist()} if wanted.get(name) == "-" else {})}
            for name, array in named.items()
        },
    }  # fmt: skip

    rows = device.profile(_registers(program)) if profile else []
    if profile:
        data["profile"] = [row.as_json() for row in rows]

    def text() -> str:
        lines = []
        for name, array in named.items():
            path = wanted.get(name)
            if path == "-":
                lines.append(f"{name}: {describe(array)}\n{array}")
            elif path is not None:
                lines.append(f"{name}: {describe(array)} written to {path}")
            elif not wanted:
                facts = summary(array)
                lines.append(
                    f"{name}: {describe(array)}"
                    + "".join(f"  {k} {facts[k]:.6g}" for k in ("min", "max", "mean") if k in facts)
                )
        if repeat > 1:
            times_ = [("first", f"{data['first_ms']:.4f} ms"), ("median", f"{data['median_ms']:.4f} ms")]
            lines.append(table([*times_, ("least", f"{min(times) * 1e3:.4f} ms")], right=(1,)))
        if profile:
            lines += ["", profile_text(rows)]
        return "\n".join(lines)

    output.result(data, text)


def _registers(program: Any) -> dict[str, int]:
    """What ptxas, where it is installed, says of the program's kernels."""
    return ptxas_registers(program.driver.ptx, program.spec["target"]["name"])


def make_inputs(spec: Mapping[str, Any], values: Mapping[str, str], dims: Mapping[str, int], seed: int) -> list[Any]:
    """The arrays for all inputs of ``spec`` in order, read or generated as ``values`` says, by name.

    The sizes of generated inputs come from ``dims`` and from the shapes of the arrays read. Raises FX0607 for a name
    that is no input, FX0905 where an input has no value or a size is not known, and what reading a file raises.
    """
    names = [one["name"] for one in spec["inputs"]]
    for name in values:
        if name not in names:
            raise error("FX0607", f"there is no input {name!r}", help=_inputs_text(spec))
    missing = [name for name in names if name not in values]
    if missing:
        raise error("FX0905", f"no value for the input {', '.join(missing)}", help=_inputs_text(spec))
    known = dict(dims)
    arrays: dict[str, Any] = {}
    for raw in (False, True):  # files without a head last: what is known of their sizes comes from the others
        for one in spec["inputs"]:
            value = values[one["name"]]
            if not value.startswith("@") or (os.path.splitext(value)[1].lower() in RAW) is not raw:
                continue
            d = arguments.dtype(one["dtype"])
            array = _raw(one, value[1:], d, known) if raw else read_file(value[1:], one["name"], d)
            arrays[one["name"]] = array
            if len(array.shape) == len(one["shape"]):
                known |= {
                    size: n
                    for size, n in zip(one["shape"], array.shape)
                    if isinstance(size, str) and size in spec["symbols"]
                }
    for one in spec["inputs"]:
        if one["name"] not in arrays:
            unknown = sorted({symbol for size in one["shape"] for symbol in sizes.names(size)} - set(known))
            if unknown:
                example = " ".join(f"--dim {symbol}=32" for symbol in unknown)
                raise error(
                    "FX0905", f"the input {one['name']} needs the size {', '.join(unknown)}", help=f"give it: {example}"
                )
            shape = [sizes.evaluate(size, known) for size in one["shape"]]
            arrays[one["name"]] = generate(one["name"], values[one["name"]], arguments.dtype(one["dtype"]), shape, seed)
    return [arrays[name] for name in names]


def input_values(spec: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """``--input`` texts as a dict by input: ``@FILE`` without a name is every input that the file has an array for."""
    values: dict[str, str] = {}
    for text in texts:
        if not text.startswith("@"):
            continue
        names = members(text[1:])
        if names is None:
            raise error("FX0905", f"--input {text}: the file holds one array", help=f"say which input: NAME={text}")
        values |= {one["name"]: text for one in spec["inputs"] if one["name"] in names}
    return values | assignments([t for t in texts if not t.startswith("@")], "--input")


def _raw(one: Mapping[str, Any], path: str, d: Any, known: Mapping[str, int]) -> Any:
    """A file without a head: the sizes are known, or all but one."""
    shape = [None if sizes.names(size) - set(known) else sizes.evaluate(size, known) for size in one["shape"]]
    unknown = [size for size, n in zip(one["shape"], shape) if n is None]
    if len(unknown) > 1:
        raise error(
            "FX0905", f"the sizes {', '.join(map(str, unknown))} of {path} are not known", help="give them with --dim"
        )
    return read_raw(path, d, shape)


def _load(output: Output, file: str, entry: str | None, trust: bool, sizes: Mapping[str, int]) -> Program | GpuProgram:
    device = config.get().device
    suffix = os.path.splitext(file)[1]
    if suffix == ".fxb":
        from ..runtime.artifact import open_artifact

        return load_artifact(open_artifact(file), device)
    if suffix not in (".py", ".fx", ".onnx"):
        raise error(
            "FX0808", f"{file}: the kind of file is not known", help="run a .fxb artifact, or a .py, .fx or .onnx model"
        )
    from .models import load_file, lowered

    output.progress(f"compiling {file}")
    fixed = sizes if suffix == ".onnx" else {}  # a program for all sizes is not always possible there
    compiled = lowered(load_file(file, trust), entry, fixed).compile(device=device)
    return load_program(compiled.spec, compiled.code, compiled.constants, device)


def _wanted(spec: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """Output files by name: the path without its ``@``, or ``-``. Raises FX0607 and FX0905."""
    names = [one["name"] for one in spec["outputs"]]
    every = [t[1:] for t in texts if t.startswith("@")]
    found = {name: path for path in every for name in names}
    for path in every:
        if os.path.splitext(path)[1].lower() not in (".npz", ".safetensors"):
            raise error("FX0905", f"--output @{path}: all outputs go to one .npz or .safetensors file")
    for name, value in assignments([t for t in texts if not t.startswith("@")], "--output").items():
        if name not in names:
            raise error("FX0607", f"there is no output {name!r}", help=f"the outputs are: {', '.join(names)}")
        if value != "-" and not (value.startswith("@") and len(value) > 1):
            raise error(
                "FX0905",
                f"--output {name}={value}: an output goes to a file or to -",
                help=f"write {name}=@FILE.npy or {name}=-",
            )
        found[name] = value.removeprefix("@")
    return found


def _inputs_text(spec: Mapping[str, Any]) -> str:
    return "the inputs are: " + ", ".join(f"{one['name']}: {arguments.show_type(one)}" for one in spec["inputs"])
