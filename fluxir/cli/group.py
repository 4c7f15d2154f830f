"""Owns the root command and the table of verbs: one module for each verb, imported when that verb is run.

Invariants: ``--help``, ``--version`` and completion of verb names import no verb module, and so neither numpy nor
llvmlite.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import error
from . import OutputClosed
from .common import setting_options

__all__ = ["VERBS", "root"]

VERBS: dict[str, str] = {
    "demo": "Compile a real model, run it on real images, write PTX and a report.",
    "check": "Check a model: trace it, check all types, run the passes.",
    "import": "Write the program of an ONNX file as IR text.",
    "compile": "Compile a model to an artifact, or for a GPU to PTX.",
    "run": "Run an artifact or a model on arrays.",
    "bundle": "Make a C library of a model, for CPUs or NVIDIA GPUs.",
    "bench": "Time a model, beside ONNX Runtime where wanted.",
    "profile": "Time every kernel of a model on this CPU, beside what the machine can do.",
    "tune": "Search for faster schedules of a model's kernels, and keep what is found.",
    "vgpu": "Run and check PTX on the virtual GPU, list its instructions.",
    "opt": "Run passes over IR text, or go on from a dump.",
    "show": "Print a program at any stage: IR, kernels, LLVM IR, assembly, PTX.",
    "verify": "Verify a program, and compare compiled code with the interpreter.",
    "diff": "Compare two programs.",
    "ops": "List all ops and the rules each has, or everything about one.",
    "passes": "List all passes with their options.",
    "targets": "List what can be compiled for, or all facts of one target.",
    "doctor": "Check this installation and machine.",
    "explain": "Print the long text of an error code.",
    "cache": "Look at, check and prune the compile cache.",
    "completion": "Print the completion script for a shell.",
    "version": "Print the versions of fluxir and what it stands on.",
}
"""Every verb in the order of ``--help``, with its one line. The module ``cli/VERB.py`` holds its ``command``."""


class VerbGroup(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            near = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f"did you mean `fluxir {near[0]}`? " if near else ""
            raise error("FX0909", f"there is no command {args[0]!r}", help=f"{hint}commands are: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [CompletionItem(name, help=text) for name, text in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise OutputClosed from None


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .versions import fluxir_version

        click.echo(f"fluxir {fluxir_version()}")
        ctx.exit()


root = VerbGroup(
    "fluxir",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
        *setting_options("color", "debug"),
    ],
    help="FluxIR compiles machine-learning models to native CPU code and to checked PTX.",
    epilog="Exit status: 0 ok, 1 wrong model or input, 2 wrong usage, 3 unsupported, 4 numeric mismatch, 5 limit, "
    "6 device unavailable, 70 internal error, 74 input/output, 130 interrupted. `fluxir explain` lists error codes.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=True,
)
"""The command ``fluxir``."""
