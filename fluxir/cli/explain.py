"""The verb ``explain``: the long text of an error code, or the list of all codes."""

from __future__ import annotations

import difflib

import click
from click.shell_completion import CompletionItem

from ..errors import CODES, EXIT_CLASSES, error
from .common import Output, table, verb

__all__ = ["command"]


def _code(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The code, however it was typed: ``FX0203``, ``fx0203``, ``203`` or ``error[FX0203]:``."""
    if value is None:
        return None
    text = value.strip().upper().removeprefix("ERROR").strip("[]: ")
    code = f"FX{int(text):04d}" if text.isascii() and text.isdigit() and len(text) <= 4 else text
    if code not in CODES:
        near = difflib.get_close_matches(code, CODES, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise error("FX0903", f"there is no error code {value!r}", help=hint + "`fluxir explain` lists all codes")
    return code


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(c, help=i.title) for c, i in sorted(CODES.items()) if c.startswith(incomplete.upper())]


@verb("explain", help="Print what an error code means and what to do about it. Without CODE, list all codes.")
@click.argument("code", required=False, callback=_code, shell_complete=_complete)
def command(output: Output, code: str | None) -> None:
    if code is None:
        rows = [(c, info.title) for c, info in sorted(CODES.items())]
        output.result([{"code": c, "title": title} for c, title in rows], lambda: table(rows))
        return
    info = CODES[code]
    status = EXIT_CLASSES[info.exit_class].exit_code
    data = {"code": code, "title": info.title, "exit_code": status, "text": info.text}
    output.result(data, f"{code}: {info.title}   (exit status {status})\n\n{info.text}")
