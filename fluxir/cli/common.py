"""Owns what all verbs share: ``--json``, options made from settings, tables, progress on a terminal.

Invariants: with ``--json`` stdout carries exactly one JSON document and nothing else; progress goes to stderr, and
only to a terminal unless asked for; an option that changes a setting is named after it and documented by it.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import click

from .. import config
from ..errors import printable
from . import sandbox

__all__ = ["Output", "setting_options", "table", "verb"]


class Output:
    """Where a verb writes: one result for people or, with ``--json``, for programs; and progress while it works."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._shown = 0.0
        self._dirty = False

    def result(self, data: object, text: str | Callable[[], str]) -> None:
        """Write ``data`` as JSON or ``text`` (made only when needed) to stdout, with a final newline."""
        self.clear()
        if self.as_json:
            click.echo(json.dumps(_plain(data), indent=2, allow_nan=False))
        else:
            body = text if isinstance(text, str) else text()
            # Names of a stranger's model must not command the terminal; colours are all that we write of that kind.
            parts = re.split(r"(\x1b\[[0-9;]*m)", body)
            shown = "".join(part if n % 2 else printable(part) for n, part in enumerate(parts))
            click.echo(shown, color=config.wants_color(sys.stdout.isatty()))

    def progress(self, text: str) -> None:
        """Replace the progress line; at most ten times a second, and not at all where progress is off."""
        now = time.monotonic()
        if not self._wants_progress() or now - self._shown < 0.1:
            return
        self._shown, self._dirty = now, True
        print(f"\r\x1b[K{text[:120]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the progress line, before something else is written."""
        if self._dirty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._dirty = False

    @staticmethod
    def _wants_progress() -> bool:
        choice = config.get().progress
        return choice == "always" or (choice == "auto" and sys.stderr.isatty())


def _plain(data: object) -> object:
    """``data`` with what JSON has no form for as text: infinities and NaN, and objects."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data if data is None or isinstance(data, bool | int | float | str) else str(data)


def verb(
    name: str, *, settings: Sequence[str] = (), **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a verb: the function gets an `Output` first, then its click parameters. It may return an exit status.

    ``settings`` names settings that become options. ``attributes`` go to `click.command`.
    """

    def declare(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(json_: bool, **values: Any) -> Any:
            output = Output(json_)
            sandbox.enter(name)
            try:
                return function(output, **values)
            finally:
                output.clear()

        make = cast(Callable[[Callable[..., Any]], click.Command], click.command(name, cls=click.Command, **attributes))
        command = make(run)
        command.params.append(
            click.Option(["--json", "json_"], is_flag=True, help="Write one JSON document to stdout.")
        )
        limits = ("sandbox", "max_memory", "max_seconds") if name in sandbox.VERBS | sandbox.UNTIMED else ()
        command.params += setting_options(*settings, *limits, "color", "debug")
        return command

    return declare


def setting_options(*names: str) -> list[click.Parameter]:
    """One option for each named setting. A value given changes the setting for the whole process; FX0902 if it is
    wrong."""
    return [_setting_option(config.SETTINGS[name]) for name in names]


def _setting_option(setting: config.Setting) -> click.Option:
    def apply(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None and not ctx.resilient_parsing:
            config.configure(**{setting.name: value})

    switch = setting.kind == "on|off"
    declaration = f"{setting.flag}/--no-{setting.flag[2:]}" if switch else setting.flag
    return click.Option(
        [declaration],
        default=None,
        expose_value=False,
        callback=apply,
        help=setting.doc,
        type=click.BOOL if switch else click.Choice(setting.choices) if setting.choices else click.STRING,
        metavar=None
        if switch or setting.choices
        else setting.kind.split(",")[0].split(" or ")[0].replace(" ", "-").upper(),
        show_default=False,
    )


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """Rows as aligned columns, two spaces apart; the columns numbered in ``right`` are set to the right."""
    cells = [[str(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not cells:
        return ""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def bytes_text(count: int) -> str:
    """A number of bytes for people: ``1.5 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
