"""The verb ``vgpu``: run PTX from anywhere on the virtual GPU, check it, list the instructions there are.

Invariant: imports nothing of the compiler (ptxas, where it is installed, only for ``--profile``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import config
from ..errors import FluxError, combine, error
from ..runtime import arguments
from .arrays import describe, read_array, summary, write_array
from .common import Output, table, verb
from .profiles import profile_text, ptxas_registers

if TYPE_CHECKING:
    from ..runtime.vgpu import Device, Finding, Module

__all__ = ["command"]

DTYPES = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bf16", "f16", "f32", "f64", "bool")

_RUN_HELP = """Run the kernel K of FILE.ptx on the virtual GPU, whoever compiled it.

Arguments come in the order of the kernel's parameters: FILE.npy (an array, copied to the device), zeros:f32:1000 or
empty:f32:10,20 (an array made there), i32:5 or f32:0.5 (a number), null (no memory). NAME=... names one for --save. Example:

fluxir vgpu run saxpy.ptx --grid 4 --block 256 --arg n=i32:1000 --arg f32:2 --arg x.npy --arg y=zeros:f32:1000 --save y=out.npy
"""


@click.group("vgpu", help="Run and check PTX on the virtual GPU, list its instructions.", no_args_is_help=True)
def command() -> None:
    pass


@verb("run", help=_RUN_HELP)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--kernel", "-k", metavar="NAME", help="The kernel; may be left out where the file has one.")
@click.option("--grid", "-g", default="1", show_default=True, metavar="X,Y,Z", help="Blocks.")
@click.option("--block", "-b", default="32", show_default=True, metavar="X,Y,Z", help="Threads of a block.")
@click.option("--arg", "-a", "args", multiple=True, metavar="[NAME=]VALUE", help="The next argument.")
@click.option("--shared", default=0, type=click.IntRange(0), help="Bytes of dynamic shared memory.")
@click.option("--target", metavar="SM", help="The GPU to pretend to be (default: the one the PTX is for).")
@click.option("--check", default="raise", show_default=True, type=click.Choice(["raise", "collect", "off"]),
              help="Stop at the first finding of the sanitizer, report them all at the end, or look for none.")  # fmt: skip
@click.option("--executor", default="auto", show_default=True, type=click.Choice(["auto", "numpy", "llvm"]),
              help="What runs the code.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1),
              help="Of the errors that approximate instructions make.")  # fmt: skip
@click.option(
    "--cooperative", is_flag=True, help="All blocks are resident together, as a launch with a grid barrier asks."
)
@click.option(
    "--save", "saves", multiple=True, metavar="NAME=FILE.npy", help="Write an array argument to a file afterwards."
)
@click.option("--profile", is_flag=True, help="Registers, occupancy and lower bounds of the time on real GPUs.")
def run(
    output: Output,
    file: str,
    kernel: str | None,
    grid: str,
    block: str,
    args: tuple[str, ...],
    shared: int,
    target: str | None,
    check: str,
    executor: str,
    seed: int,
    cooperative: bool,
    saves: tuple[str, ...],
    profile: bool,
) -> int:
    from ..runtime.vgpu import DeviceArray, SanitizerError
    from ..runtime.vgpu.counters import as_dict
    from ..runtime.vgpu.driver import as_error
    from ..runtime.vgpu.profile import profile as profiled

    text = _read(file)
    device, module = _load(text, target)
    k = module[kernel or _only(module, file)]
    shape, threads = _sizes(grid, "--grid"), _sizes(block, "--block")
    names = list(k.arguments)
    if len(args) > len(names):
        raise error("FX0905", f"{k.name} takes {len(names)} arguments, {len(args)} were given", help=_parameters(k))
    given: dict[str, Any] = {}
    for parameter, value in zip(names, args):
        name, equals, rest = value.partition("=")
        name, value = (name, rest) if equals else (parameter, value)
        if name in given:
            raise error("FX0905", f"--arg names {name!r} twice")
        given[name] = _argument(device, name, value)
    if len(args) < len(names):
        raise error("FX0905", f"{k.name} takes {len(names)} arguments, {len(args)} were given", help=_parameters(k))
    files = _save_places(saves, given)
    output.progress(f"running {k.name}")
    try:
        report = k.launch(
            shape,
            threads,
            list(given.values()),
            shared,
            check=check,
            seed=seed,
            cooperative=cooperative,
            executor=executor,
        )
    except SanitizerError as found:
        raise as_error(found, os.path.basename(file), {}) from None
    for name, path in files.items():
        write_array(path, given[name].numpy())
    arrays = {name: a.numpy() for name, a in given.items() if isinstance(a, DeviceArray)}
    data = {
        "file": file,
        "kernel": k.name,
        "target": device.target.name,
        "grid": list(report.grid),
        "block": list(report.block),
        "executor": report.executor,
        "seconds": round(report.seconds, 6),
        "findings": [_finding(f) for f in report.findings],
        "counters": as_dict(report.counters),
        "arrays": {name: summary(a) for name, a in arrays.items()},
    }
    rows = []
    if profile:
        rows = profiled([report], {k.name: k}, ptxas_registers(text, device.target.name), dynamic_shared=shared)
        data["profile"] = rows[0].as_json()

    def written() -> str:
        c = report.counters
        lines = [f"{k.name}: {c.thread_instructions:,} thread instructions, {c.warp_instructions:,} warp instructions, "
                 f"{report.seconds:.3f} s by the {report.executor} executor"]  # fmt: skip
        for name, a in arrays.items():
            facts = summary(a)
            values = "".join(f"  {n} {facts[n]:.6g}" for n in ("min", "max", "mean") if n in facts)
            lines.append(f"{name}: {describe(a)}{values}" + (f"  written to {files[name]}" if name in files else ""))
        lines += [str(f) for f in report.findings]
        if profile:
            lines += ["", profile_text(rows)]
        return "\n".join(lines)

    output.result(data, written)
    return 1 if report.findings else 0


@verb("check", help="Parse FILE.ptx and link its kernels; report everything the virtual GPU cannot run, in one go.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--target", metavar="SM", help="The GPU to check for (default: the one the PTX is for).")
def check(output: Output, file: str, target: str | None) -> None:
    from ..runtime.vgpu.isa import form_of
    from ..runtime.vgpu.ptx import Label

    device, module = _load(_read(file), target)
    problems: dict[str, FluxError] = {}
    counts: dict[str, int] = {}
    for f in module.ptx.functions.values():
        found = [x for x in f.body or () if not isinstance(x, Label)]
        counts[f.name] = len(found)
        for x in found:
            try:
                form_of(x)
            except FluxError as problem:
                problems.setdefault(problem.message.partition("`: ")[2] or problem.message, problem)
    if not problems:
        for name in module:
            try:
                _ = module[name].code
            except FluxError as problem:
                problems.setdefault(problem.message, problem)
    if problems:
        raise combine(problems.values())
    data = {"file": file, "target": device.target.name, "kernels": {name: counts[name] for name in module}}
    output.result(
        data,
        lambda: table(
            [(n, c) for n, c in data["kernels"].items()],  # type: ignore[attr-defined]
            ("kernel", "instructions"),
            right=(1,),
        ),
    )


@verb(
    "instructions", help="List every PTX instruction that the virtual GPU runs, or those whose name starts with PREFIX."
)
@click.argument("prefix", required=False, default="")
def instructions(output: Output, prefix: str) -> None:
    from ..runtime.vgpu.isa import opcodes

    found = [(name, o) for name, declared in sorted(opcodes().items()) if name.startswith(prefix) for o in declared]
    if not found:
        raise error(
            "FX0710", f"the virtual GPU has no instruction {prefix!r}", help="`fluxir vgpu instructions` lists all"
        )
    rows: list[dict[str, Any]] = [
        {
            "name": name, "class": _class(o), "forms": len(o.forms), "types": sorted(o.types), "modifiers": sorted(o.flags),
            "section": o.section, "what": o.doc.partition(". ")[0].split("\n")[0].rstrip("."),
        }
        for name, o in found
    ]  # fmt: skip

    def text() -> str:
        lines = [
            (r["name"], r["class"], r["forms"] or "", " ".join(r["types"])[:40], r["section"], r["what"]) for r in rows
        ]
        total = f"{len({n for n, _ in found})} instructions, {sum(len(o.forms) for _, o in found)} forms of the lanewise ones"
        head = ("instruction", "class", "forms", "types", "PTX ISA", "what it does")
        return table(lines, head, right=(2,)) + "\n\n" + total

    output.result({"instructions": rows}, text)


# ---- what was given ---------------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    """Raises FX0803 and FX0908."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > config.get().max_file_size:
                raise error("FX0908", f"{path} has {size} bytes, and max_file_size is {config.get().max_file_size}")
            return file.read().decode("utf-8", "replace")
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None


def _load(text: str, target: str | None) -> tuple[Device, Module]:
    """FX0501, FX0707, FX0711. Without a target: the GPU that the PTX is for."""
    from ..runtime.vgpu import Device

    if target is None:
        found = re.search(r"^\s*\.target\s+(sm_\d+[af]?)", text, re.MULTILINE)
        target = found[1] if found else "sm_90"
    device = Device(target)
    return device, device.load(text)


def _only(module: Module, file: str) -> str:
    names = list(module)
    if len(names) != 1:
        raise error(
            "FX0905", f"{file} has {len(names)} kernels: which?", help=f"--kernel {' or '.join(names) or 'NAME'}"
        )
    return names[0]


def _parameters(k: Any) -> str:
    return "its parameters: " + ", ".join(f"{name} .{v.type}" for name, (_, v) in k.arguments.items())


def _sizes(text: str, option: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not 1 <= len(parts) <= 3 or not all(p.strip().isascii() and p.strip().isdigit() and len(p) < 12 for p in parts):
        raise error("FX0905", f"{option} {text!r} is not one to three sizes", help=f"write {option} 4 or {option} 4,2")
    return tuple(int(p) for p in parts)


_FORMS = "write FILE.npy, zeros:f32:1000, empty:f32:10,20, i32:5, f32:0.5 or null, with NAME= before it if you like"


def _argument(device: Device, name: str, value: str) -> Any:
    """A device array, a number or None. Raises FX0905, and what reading a file raises."""
    import numpy as np

    if value == "null":
        return None
    if value.endswith(".npy"):
        return device.array(read_array(value), label=name)
    kind, _, rest = value.partition(":")
    if kind in ("zeros", "empty", "ones"):
        dtype, _, shape = rest.partition(":")
        if dtype in DTYPES and re.fullmatch(r"\d{1,12}(,\d{1,12})*", shape):
            sizes = tuple(int(n) for n in shape.split(","))
            if kind == "ones":
                return device.array(np.ones(sizes, arguments.dtype(dtype)), label=name)
            return (device.zeros if kind == "zeros" else device.empty)(sizes, arguments.dtype(dtype), label=name)
    elif kind in DTYPES and rest:
        number = _number(kind, rest)
        if number is not None:
            return number
    raise error("FX0905", f"--arg {name}={value} is no argument", help=_FORMS)


def _number(kind: str, text: str) -> Any:
    """A number of the type `kind`; None where the text is none, or does not fit."""
    import numpy as np

    dtype = arguments.dtype(kind)
    try:
        if "f" in kind:
            return dtype.type(float(text))
        number = int(text, 0)
    except ValueError:
        return None
    limits = (0, 1) if kind == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return dtype.type(number) if limits[0] <= number <= limits[1] else None


def _save_places(saves: Sequence[str], given: dict[str, Any]) -> dict[str, str]:
    from ..runtime.vgpu import DeviceArray

    out = {}
    arrays = [name for name, a in given.items() if isinstance(a, DeviceArray)]
    for text in saves:
        name, _, path = text.partition("=")
        if name not in arrays or not path:
            raise error(
                "FX0905", f"--save {text} names no array argument", help=f"the arrays: {', '.join(arrays) or 'none'}"
            )
        out[name] = path
    return out


# ---- what is shown ----------------------------------------------------------------------------------------------------


def _finding(f: Finding) -> dict[str, Any]:
    return {
        "kind": f.kind, "message": f.message, "kernel": f.kernel, "block": f.block, "thread": f.thread,
        "address": f.address, "line": f.line, "text": f.text, "location": str(f.location or ""), "count": f.count,
    }  # fmt: skip


def _class(o: Any) -> str:
    """An instruction's class for the counters, for its first type."""
    from ..runtime.vgpu.isa import Form
    from ..runtime.vgpu.ptx import Instruction

    form = Form(Instruction(o.name, (), (), None, 0, ""), tuple(sorted(o.types))[:1], ())
    return str(o.group(form))


for _sub in (run, check, instructions):
    command.add_command(_sub)
