"""The verb ``profile``: where the time of a model goes on this CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import error
from .arrays import assignments, dim_sizes
from .common import Output, verb
from .models import ENTRY, TRUST, load_file, lowered
from .run import make_inputs

__all__ = ["command"]

_HELP = """Run each FILE, a model (.py, .fx) or an artifact that holds its program, with every kernel timed.

Prints time, operations and bytes a second, the share of what this machine can do at most, schedule and lines of the model
for each kernel. Inputs are given as for `fluxir run`; those without a value are random. Example:

fluxir profile model.py --dim B=32 --trace trace.json --html profile.html
"""


@verb("profile", settings=("target", "num_threads", "opt_level", "accuracy", "tuned"), help=_HELP)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="The value of an input.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="The size of generated inputs, such as B=32.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of random inputs.")
@click.option("--repeat", default=10, show_default=True, type=click.IntRange(1, 10**6), help="Calls that are measured.")
@click.option("--trace", metavar="FILE", help="Write launches and threads in Chrome's trace format (for Perfetto).")
@click.option("--html", "page", metavar="FILE", help="Write a page with the tables and each kernel.")
@ENTRY
@TRUST
def command(
    output: Output,
    files: tuple[str, ...],
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    seed: int,
    repeat: int,
    trace: str | None,
    page: str | None,
    entry: str | None,
    trust: bool,
) -> None:
    from ..profile_report import NOTE
    from ..profile_report import page as page_of
    from ..profile_report import trace as trace_of
    from ..profiling import Profile, profile_program

    found: list[Profile] = []
    for file in files:
        output.progress(f"profiling {file}")

        def arrays(spec: Mapping[str, Any]) -> list[Any]:
            given = {one["name"]: "random" for one in spec["inputs"]} | assignments(inputs, "--input")
            return make_inputs(spec, given, dim_sizes(dims), seed)

        found.append(profile_program(lowered(load_file(file, trust), entry), arrays, repeat=repeat))
    if trace is not None:
        _write(trace, json.dumps(trace_of(found)))
    if page is not None:
        _write(page, page_of(found))
    output.result([p.as_json() for p in found], lambda: "\n\n".join([*(p.table() for p in found), NOTE]))


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as reason:
        raise error("FX0804", f"{path} cannot be written: {reason.strerror or reason}") from None
