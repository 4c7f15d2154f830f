"""The verb ``check``: is this model right? Traces every entry point, checks all types and runs the tensor-level
passes. Of an ONNX file it lists the operators with what is supported, without reading the weights."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import click

from ..errors import FluxError, UnsupportedError, combine
from .arrays import dim_sizes
from .common import Output, table, verb
from .models import ENTRY, load_file, lowered, signature

__all__ = ["command"]


@verb(
    "check",
    settings=("target", "verify"),
    help="Check a model: trace every entry point, check types, run the passes up to loops. Nothing is compiled or written."
    " Of an ONNX file, list all operators with what is not supported; its weights are not read.",
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="Check it for this size of a symbol, such as B=32."
)
@ENTRY
def command(output: Output, file: str, dims: tuple[str, ...], entry: str | None) -> None:
    sizes = dim_sizes(dims)
    if os.path.splitext(file)[1] == ".onnx":
        _operators(output, file)
        return
    model = load_file(file)
    names = list(model.entries) if entry is None else [model.entry(entry).name]
    rows: list[dict[str, Any]] = []
    problems: list[FluxError] = []
    for name in names:
        output.progress(f"checking {name}")
        try:
            program = lowered(model, name, sizes)
            loops = program.build().stages["loops"]
        except FluxError as problem:
            problem.notes.append(f"in the entry point {name}")
            problems.append(problem)
            continue
        rows.append({**signature(program), "kernels": sum(func.level == "kernel" for func in loops.funcs.values())})
    if problems:
        raise combine(problems)

    def text() -> str:
        blocks = []
        for row in rows:
            parts = [(f"  {one['name']}", one["type"]) for one in row["arguments"]]
            parts += [(f"  -> {one['name']}", one["type"]) for one in row["results"]]
            facts = [f"  where {', '.join(row['facts'])}"] if row["facts"] else []
            head = f"{row['name']}: ok, {row['ops']} ops, {row['kernels']} kernels"
            blocks.append("\n".join([head, table(parts), *facts]))
        return "\n".join(blocks)

    output.result({"file": file, "ok": True, "entries": rows}, text)


def _operators(output: Output, file: str) -> None:
    """The table of an ONNX file's operators; exit status 3 where something in it is not supported."""
    from ..frontend.onnx.model import read
    from ..frontend.onnx.survey import survey

    found = survey(read(file))

    def text() -> str:
        rows = [
            (o.name, o.domain or "ai.onnx", str(o.opset), str(o.count), o.problem or "yes", o.help)
            for o in found.operators
        ]
        lines = [table(rows, ["operator", "domain", "opset", "count", "supported", "what to do"], right=(2, 3))]
        opsets = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in sorted(found.opsets.items()))
        lines.append(f"{found.nodes} nodes; opsets: {opsets}")
        return "\n".join([*lines, *[f"problem: {p}" for p in found.problems]])

    output.result({"file": file, "ok": found.supported, **asdict(found)}, text)
    if not found.supported:
        raise click.exceptions.Exit(UnsupportedError.exit_code)
