"""The verb ``check``: is this model right? Traces every entry point, checks all types and runs the tensor-level
passes."""

from __future__ import annotations

from typing import Any

import click

from ..errors import FluxError, combine
from .common import Output, table, verb
from .models import ENTRY, load_file, lowered, signature

__all__ = ["command"]


@verb(
    "check",
    settings=("target", "verify"),
    help="Check a model: trace every entry point, check types, run the passes up to loops. Nothing is compiled or written.",
)
@click.argument("file", type=click.Path(dir_okay=False))
@ENTRY
def command(output: Output, file: str, entry: str | None) -> None:
    model = load_file(file)
    names = list(model.entries) if entry is None else [model.entry(entry).name]
    rows: list[dict[str, Any]] = []
    problems: list[FluxError] = []
    for name in names:
        output.progress(f"checking {name}")
        try:
            program = lowered(model, name)
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
