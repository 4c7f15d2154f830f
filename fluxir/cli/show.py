"""The verb ``show``: a program at any stage, as text."""

from __future__ import annotations

import click

from .. import config
from ..errors import error
from .common import Output, verb
from .models import ENTRY, load_entry
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
@ENTRY
def command(output: Output, file: str, stage: str, locations: bool, entry: str | None) -> None:
    from ..dump import plan_text

    if stage not in STAGES:
        raise error("FX0512", f"there is no stage {stage!r}", help=f"the stages are: {', '.join(STAGES)}")
    lowered = load_entry(file, entry)
    if stage == "plan":
        text = plan_text(lowered.build().stages["loops"])
    else:
        target = config.get().target
        text = lowered.as_text(stage, "sm_80" if stage == "ptx" and target.startswith("cpu") else target, locations)
    output.result({"file": file, "stage": stage, "text": text}, text.rstrip("\n"))
