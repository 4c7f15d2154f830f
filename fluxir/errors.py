"""Owns the exceptions users see: one class per exit status, one code per kind of mistake, one way to render them.

Invariants: every user-facing error carries a code from the catalogue (``errors_catalog``), and the catalogue alone
decides its class and so its exit status. Rendering never raises, and shows source lines only of Python and IR files
or of sources registered with `register_source`: a location inside IR text from a stranger cannot make us print
another file. This is a leaf: it imports nothing of ours but its own catalogue.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .errors_catalog import CODES, CodeInfo

__all__ = [
    "CODES", "CodeInfo", "DeviceError", "FluxError", "IOFailure", "InternalError", "LimitError", "Location",
    "NumericMismatch", "UnsupportedError", "UsageError", "UserError", "combine", "error", "printable", "register_source",
]  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in the user's source: ``line`` and ``col`` count from 1; ``col`` 0 means the column is not known."""

    file: str
    line: int
    col: int = 0
    func: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}" if self.col else f"{self.file}:{self.line}"


Label = tuple[Location | str, str]


class FluxError(Exception):
    """Base of every error fluxir raises on purpose. Raise through `error`, which picks the subclass.

    ``labels`` are pairs. ``(name, text)`` with a string, such as ``("x", "f32[32, 4]")``, is written behind the caret
    as ``x: f32[32, 4]``; ``("", text)`` writes the text alone. ``(Location, text)`` is written under its own source
    line. ``more`` holds further errors of the same kind, reported in the same go (see `combine`).
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        loc: Location | None = None,
        labels: Sequence[Label] = (),
        notes: Sequence[str] = (),
        help: str | None = None,
        more: Sequence[FluxError] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.loc = loc
        self.labels: list[Label] = list(labels)
        self.notes = list(notes)
        self.help = help
        self.more = list(more)

    def __str__(self) -> str:
        return self.render()

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call cls(message): errors cross process borders (parallel code generation), so say it in full.
        return (
            _rebuild,
            (type(self), self.code, self.message, self.loc, self.labels, self.notes, self.help, self.more),
        )

    def render(self, color: bool = False) -> str:
        """The error as text of several lines without a final newline, with ANSI colours when ``color``."""
        parts = [_render_one(self, _Paint(color))]
        parts += [other.render(color) for other in self.more]
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, object]:
        """The error as JSON-ready data, the form ``--json`` prints."""
        return {
            "code": self.code,
            "message": self.message,
            "exit_code": self.exit_code,
            "location": _location_dict(self.loc),
            "labels": [
                {"location": _location_dict(at), "text": text}
                if isinstance(at, Location)
                else {"name": at, "text": text}
                for at, text in self.labels
            ],
            "notes": list(self.notes),
            "help": self.help,
            "more": [other.as_dict() for other in self.more],
        }


class UserError(FluxError):
    """The model, its IR text or its inputs are wrong (exit 1)."""

    exit_code = 1


class UsageError(FluxError):
    """The command line or a setting is wrong (exit 2)."""

    exit_code = 2


class UnsupportedError(FluxError):
    """The request makes sense and fluxir does not do it (exit 3)."""

    exit_code = 3


class NumericMismatch(FluxError):
    """Two evaluations that must agree do not (exit 4)."""

    exit_code = 4


class LimitError(FluxError):
    """A size, depth or time limit was reached (exit 5)."""

    exit_code = 5


class DeviceError(FluxError):
    """A device or its driver is not there or failed (exit 6)."""

    exit_code = 6


class InternalError(FluxError):
    """A defect in fluxir itself (exit 70)."""

    exit_code = 70


class IOFailure(FluxError):
    """A file could not be read, written or trusted (exit 74)."""

    exit_code = 74


EXIT_CLASSES: dict[str, type[FluxError]] = {
    "user": UserError,
    "usage": UsageError,
    "unsupported": UnsupportedError,
    "mismatch": NumericMismatch,
    "limit": LimitError,
    "device": DeviceError,
    "internal": InternalError,
    "io": IOFailure,
}


def error(
    code: str,
    message: str | None = None,
    *,
    loc: Location | None = None,
    labels: Sequence[Label] = (),
    notes: Sequence[str] = (),
    help: str | None = None,
) -> FluxError:
    """Build, not raise, the error of ``code``: ``raise error("FX0203", "...", loc=loc, help="...")``.

    The catalogue gives the class, the title where ``message`` is None, and its hint where ``help`` is None. A code
    the catalogue does not know raises KeyError: that is a mistake in the caller, found by the first test that reaches
    it.
    """
    from .errors_catalog import CODES  # only now: most processes end without an error

    info = CODES.get(code)
    if info is None:
        raise KeyError(f"error code {code} is not in fluxir/errors_catalog: declare it there")
    kind = EXIT_CLASSES[info.exit_class]
    shown = info.title if message is None else message
    return kind(code, shown, loc=loc, labels=labels, notes=notes, help=help or info.hint or None)


def combine(errors: Iterable[FluxError]) -> FluxError:
    """One error that reports all of ``errors`` (at least one), in order, with the first one's code and exit status."""
    first, *rest = errors
    flat: list[FluxError] = []
    for other in rest:
        flat += [other, *other.more]
        other.more = []
    first.more += flat
    return first


# -- source lines ------------------------------------------------------------------------------------------------------

_SOURCES: dict[str, list[str]] = {}
_MAX_SOURCES = 64
_MAX_LINE = 200
_MAX_MESSAGE = 2000
_SHOWN_SUFFIXES = (".py", ".fx", ".pyi")


def register_source(name: str, text: str) -> None:
    """Remember ``text`` as the source called ``name`` (such as ``<string>``), so that errors in it can show their
    line."""
    _SOURCES.pop(name, None)
    while len(_SOURCES) >= _MAX_SOURCES:
        del _SOURCES[next(iter(_SOURCES))]
    _SOURCES[name] = text.splitlines()


def source_line(loc: Location) -> str | None:
    """The source line at ``loc`` without its newline, or None where it cannot be read or must not be shown."""
    lines = _SOURCES.get(loc.file)
    if lines is not None:
        return lines[loc.line - 1] if 1 <= loc.line <= len(lines) else None
    # `<ipython-input-3>` and `<stdin>` live in linecache only; real files must be what a location can honestly name.
    if not (loc.file.startswith("<") or loc.file.endswith(_SHOWN_SUFFIXES)):
        return None
    import linecache

    try:
        if not loc.file.startswith("<"):
            linecache.checkcache(loc.file)
        text = linecache.getline(loc.file, loc.line)
    except (OSError, ValueError, SyntaxError, UnicodeError, MemoryError):
        return None
    return text.rstrip("\r\n") or None


# -- rendering ---------------------------------------------------------------------------------------------------------


class _Paint:
    """ANSI colours by role, or nothing."""

    _CODES: ClassVar[dict[str, str]] = {"error": "1;31", "bold": "1", "rule": "1;34", "caret": "1;31", "help": "1;36"}

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, role: str, text: str) -> str:
        return f"\x1b[{self._CODES[role]}m{text}\x1b[0m" if self.on and text else text


def _render_one(err: FluxError, paint: _Paint) -> str:
    out = [paint("error", f"error[{err.code}]") + paint("bold", f": {_message(err.message)}")]
    places = _places(err)
    gutter = max((len(str(loc.line)) for loc, _ in places), default=1)
    bar = paint("rule", " " * gutter + " |")
    for number, (loc, label) in enumerate(places):
        arrow = "-->" if number == 0 and err.loc is not None else ":::"
        where = f"{_short(loc)}, in {printable(loc.func)}" if loc.func else _short(loc)
        out.append(" " * gutter + paint("rule", arrow) + f" {where}")
        line = source_line(loc)
        if line is None:
            if label:
                out.append(f"{bar} {label}")
            continue
        text, caret = _excerpt(line, loc.col)
        out.append(bar)
        out.append(paint("rule", f"{loc.line:>{gutter}} |") + f" {text}".rstrip())
        if caret is not None:
            out.append(f"{bar} {' ' * caret}{paint('caret', '^')} {label}".rstrip())
        elif label:
            out.append(f"{bar} {label}")
    if err.loc is None:
        text = _inline(err)
        if text:
            out.append(f"{bar} {text}")
    for note in err.notes:
        out += _tail("note", note, gutter, paint)
    if err.help:
        out += _tail("help", err.help, gutter, paint)
    return "\n".join(out)


def _message(text: str) -> str:
    """A message of bearable length: a foreign file may give its parts names of any."""
    return printable(text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}... ({len(text)} characters)")


def _places(err: FluxError) -> list[tuple[Location, str]]:
    places = [] if err.loc is None else [(err.loc, _inline(err))]
    return places + [(at, printable(text)) for at, text in err.labels if isinstance(at, Location)]


def _inline(err: FluxError) -> str:
    named = [(at, text) for at, text in err.labels if isinstance(at, str)]
    return "   ".join(printable(f"{at}: {text}" if at else text) for at, text in named)


def _tail(kind: str, text: str, gutter: int, paint: _Paint) -> list[str]:
    first, *rest = text.splitlines() or [""]
    out = [f"{' ' * gutter} {paint('rule', '=')} {paint('help', kind + ':')} {printable(first)}"]
    return out + [f"{' ' * (gutter + 4 + len(kind))} {printable(line)}".rstrip() for line in rest]


def _excerpt(line: str, col: int) -> tuple[str, int | None]:
    """The line made safe to print, cut to a window around the caret, and the caret's offset in columns in it."""
    if col <= 0 or col > len(line) + 1:
        return _cut(printable(line.expandtabs(4))), None
    start = max(0, col - 1 - _MAX_LINE * 3 // 4)
    before = printable(("..." if start else "") + line[start : col - 1].expandtabs(4))
    after = printable(line[col - 1 :].expandtabs(4))
    return _cut(before + after), _width(before)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 3] + "..."


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def printable(text: str) -> str:
    """``text`` without control characters, so that a foreign file cannot send commands to the terminal."""
    if text.isascii():  # programs are long
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def _width(text: str) -> int:
    """How many terminal columns ``text`` takes: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _short(loc: Location) -> str:
    """The location with its path relative to the working directory where that is shorter."""
    if loc.file.startswith("<"):
        return printable(str(loc))
    try:
        relative = os.path.relpath(loc.file)
    except (ValueError, OSError):
        relative = loc.file
    file = relative if len(relative) < len(loc.file) and not relative.startswith("..") else loc.file
    return printable(str(Location(file, loc.line, loc.col)))


def _location_dict(loc: Location | None) -> dict[str, object] | None:
    return None if loc is None else {"file": loc.file, "line": loc.line, "col": loc.col, "func": loc.func}


def _rebuild(
    kind: type[FluxError],
    code: str,
    message: str,
    loc: Location | None,
    labels: Sequence[Label],
    notes: Sequence[str],
    help: str | None,
    more: Sequence[FluxError],
) -> FluxError:
    return kind(code, message, loc=loc, labels=labels, notes=notes, help=help, more=more)


def __getattr__(name: str) -> object:
    """`CODES` and `CodeInfo`, loaded when first asked for: the long texts are of no use to a process that succeeds."""
    if name in ("CODES", "CodeInfo"):
        from . import errors_catalog

        return getattr(errors_catalog, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
