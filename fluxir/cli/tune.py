"""The verb ``tune``: search for faster schedules of a model's kernels."""

from __future__ import annotations

import dataclasses

import click

from .arrays import dim_sizes
from .common import Output, verb
from .models import ENTRY, TRUST, load_file, lowered

__all__ = ["command"]

_HELP = """Search for faster schedules of the kernels of each FILE (.py, .fx, or an artifact that holds its program).

What is found is written to a file (default: tuned.json in the cache directory), by structure and target: it serves every
program with the same kernels. It is used where --tuned (or FLUXIR_TUNED) names that file, or is `cache`. Example:

fluxir tune model.py --dim B=64 --seconds 120 && fluxir compile model.py --tuned cache -o model.fxb
"""


@verb("tune", settings=("target", "num_threads", "opt_level", "accuracy", "cache_dir"), help=_HELP)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="The size to tune for, such as B=32.")
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(0, 1e6), help="Time for each model.")
@click.option(
    "--evaluations",
    default=1000,
    show_default=True,
    type=click.IntRange(0, 10**9),
    help="Schedules to measure, at most.",
)
@click.option("--file", "path", metavar="FILE", help="The file that keeps what is found.")
@ENTRY
@TRUST
def command(
    output: Output, files: tuple[str, ...], dims: tuple[str, ...], seconds: float, evaluations: int, path: str | None,
    entry: str | None, trust: bool,
) -> None:  # fmt: skip
    from ..tuning import tune_program

    done = []
    for file in files:
        program = lowered(load_file(file, trust), entry)
        done.append(
            tune_program(
                program, dim_sizes(dims), seconds=seconds, evaluations=evaluations, file=path, progress=output.progress
            )
        )
    output.result([dataclasses.asdict(t) for t in done], lambda: "\n\n".join(t.table() for t in done))
