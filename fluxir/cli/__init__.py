"""Owns the process that the command ``fluxir`` is: run one verb, and turn whatever happens into output and an exit
status.

Exit statuses: 0 ok, 1 user error, 2 usage, 3 unsupported, 4 numeric mismatch, 5 limit, 6 device unavailable, 70
internal error (a reproducer is written), 74 input/output, 130 interrupted, 141 when the reader of our output went
away. Invariants: every failure is rendered as one `FluxError` on stderr, and with ``--json`` also as ``{"error":
...}`` on stdout; no traceback reaches the user without ``--debug``. Nothing heavy is imported here: a verb imports
what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import sandbox

if TYPE_CHECKING:
    from ..errors import FluxError

__all__ = ["OutputClosed", "main"]

INTERRUPTED = 130
OUTPUT_CLOSED = 141


class OutputClosed(Exception):
    """The reader of our output went away. A class of our own, since click turns BrokenPipeError into exit status 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fluxir`` with ``argv`` (without the program's name; None: the process's own). Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    try:
        if argv is None and sandbox.wanted(arguments):  # this process is the command, and reads a file of a stranger
            return sandbox.supervise(lambda: _main(arguments), lambda c, m, h: _failed(c, m, h, arguments))
        return _main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    from .. import config

    try:
        with config.preserved():
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except (BrokenPipeError, OutputClosed):
        # What is still buffered would raise again when Python exits: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED


def _failed(code: str, message: str, help: str | None, arguments: list[str]) -> int:
    """What the parent of a command says when its child cannot."""
    from ..errors import error

    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)  # the child's progress
    return _report(error(code, message, help=help), arguments)


def _run(arguments: list[str]) -> int:
    import click

    from ..errors import FluxError
    from .group import root

    try:
        status = root.main(arguments, prog_name="fluxir", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except FluxError as problem:
        return _report(problem, arguments)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort as aborted:
        if isinstance(aborted.__cause__, EOFError):  # click takes it for the end of the user's typing; we never prompt
            return _unexpected(aborted.__cause__, arguments)
        raise KeyboardInterrupt from None
    except click.ClickException as problem:
        if type(problem).__name__ == "NoArgsIsHelpError":  # of click 8.2 and later: its message is the help itself
            print(problem.format_message(), file=sys.stderr)
            return 2
        return _report(_usage(problem), arguments)
    except (KeyboardInterrupt, OutputClosed, BrokenPipeError, SystemExit):
        raise
    except Exception as problem:
        return _unexpected(problem, arguments)


def _usage(problem: object) -> FluxError:
    """A complaint of click as one of ours."""
    import click

    from ..errors import error

    assert isinstance(problem, click.ClickException)
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "fluxir"
    message = problem.format_message().rstrip(".")
    return error("FX0906", message[:1].lower() + message[1:], help=f"`{path} --help` shows the usage")


def _unexpected(problem: BaseException, arguments: list[str]) -> int:
    """An exception nobody foresaw. What the system refused has a code of its own, the rest is a defect of ours."""
    from ..errors import error
    from .crash import brief

    if isinstance(problem, MemoryError):
        if sandbox.lift():  # what follows needs memory, too
            what = "reading and compiling the model takes more memory than it may"
            return _report(
                error("FX0912", what, help="--max-memory allows more, if you trust the file"), arguments, problem
            )
        return _report(error("FX0609", "this machine has not enough free memory"), arguments, problem)
    if isinstance(problem, OSError) and problem.filename is not None and problem.strerror:
        shown = os.fsdecode(problem.filename) if isinstance(problem.filename, bytes) else str(problem.filename)
        return _report(error("FX0803", f"{shown} cannot be used: {problem.strerror}"), arguments, problem)
    return _report(error("FX0999", f"{type(problem).__name__}: {brief(str(problem))}"), arguments, problem)


def _report(problem: FluxError, arguments: list[str], cause: BaseException | None = None) -> int:
    from .. import config
    from ..errors import FluxError

    try:
        color, debug = config.wants_color(sys.stderr.isatty()), config.get().debug
    except FluxError:  # the settings are what is wrong
        color, debug = False, False
    if problem.exit_code == 70:
        from .crash import write_reproducer

        path = write_reproducer(cause or problem, arguments)
        if path is not None:
            problem.notes.append(f"a reproducer is in {path}")
        problem.help = problem.help or "this is a defect of fluxir: please report it with the reproducer"
    if debug:
        import traceback

        traceback.print_exception(cause or problem)
    sys.stdout.flush()
    print(problem.render(color), file=sys.stderr)
    if "--json" in arguments:
        import json

        print(json.dumps({"error": problem.as_dict()}, indent=2))
    return problem.exit_code
