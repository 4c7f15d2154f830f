"""The verb ``show``: a program at any stage, as text."""

from __future__ import annotations

import click

from .. import config
from ..errors import error
from .arrays import dim_sizes
from .common import Output, verb
from .models import ENTRY, load_file, lowered
from .targets import complete_target as complete_target

__all__ = ["command"]

STAGES = ("traced", "adjoint", "simplified", "fused", "loops", "plan", "llvm", "asm", "ptx")


@verb(
    "show",
    settings=("target", "opt_level", "accuracy", "tuned"),
    help="Print a program at a stage: IR, kernels, LLVM IR, assembly or PTX.",
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--stage", default="traced", metavar="STAGE", help=f"One of: {', '.join(STAGES)}.")
@click.option("--locations/--no-locations", default=True, help="Show the line of the model behind every op.")
@click.option(
    "--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="Show it for this size of a symbol, such as B=32."
)
@ENTRY
def command(output: Output, file: str, stage: str, locations: bool, dims: tuple[str, ...], entry: str | None) -> None:
    from ..dump import plan_text

    if stage not in STAGES:
        raise error("FX0512", f"there is no stage {stage!r}", help=f"the stages are: {', '.join(STAGES)}")
    program = lowered(load_file(file), entry, dim_sizes(dims))
    if stage == "plan":
        text = plan_text(program.build().stages["loops"])
    else:
        target = config.get().target
        text = program.as_text(stage, "sm_80" if stage == "ptx" and target.startswith("cpu") else target, locations)
    output.result({"file": file, "stage": stage, "text": text}, text.rstrip("\n"))
