"""The verb ``diff``: how two programs differ."""

from __future__ import annotations

import difflib

import click

from ..errors import error
from .common import Output, verb
from .models import load_entry, load_text_module

__all__ = ["command"]

DIFFERENT = 1
"""The exit status where the programs differ, as diff(1) has it."""


@verb(
    "diff",
    help="Compare two programs. Names of values and source locations do not count. Exit status 1 where they differ.",
)
@click.argument("first", type=click.Path(dir_okay=False))
@click.argument("second", type=click.Path(dir_okay=False))
@click.option(
    "--stage",
    metavar="STAGE",
    help="Compare both at this stage (traced, simplified, fused, loops) instead of as they are.",
)
@click.option(
    "--context",
    default=3,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="Lines of context around a difference.",
)
def command(output: Output, first: str, second: str, stage: str | None, context: int) -> int:
    digests, texts = zip(*(_program(path, stage) for path in (first, second)))
    same = digests[0] == digests[1]
    lines = [] if same else list(difflib.unified_diff(texts[0], texts[1], first, second, lineterm="", n=context))
    data = {"same": same, "digests": list(digests), "diff": lines}

    def text() -> str:
        if same:
            return "the programs are the same"
        return "\n".join(map(_painted, lines)) or "the programs differ in large constants only"

    output.result(data, text)
    return 0 if same else DIFFERENT


def _program(path: str, stage: str | None) -> tuple[str, list[str]]:
    """The structural digest of a program and its lines without locations."""
    from ..ir.printer import print_func

    if stage is not None:
        if stage not in ("traced", "adjoint", "simplified", "fused", "loops"):
            raise error(
                "FX0512", f"there is no IR stage {stage!r}", help="the stages are: traced, simplified, fused, loops"
            )
        module = load_entry(path, None).stage(stage)
    elif path.endswith(".py"):
        module = load_entry(path, None).module
    else:
        module = load_text_module(path)
    facts = [f"dims {', '.join(module.facts.describe())}"] if module.facts.describe() else []
    return module.digest, facts + [
        line for func in module.funcs.values() for line in print_func(func, False).splitlines()
    ]


def _painted(line: str) -> str:
    color = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return click.style(line, fg=color) if color else line
