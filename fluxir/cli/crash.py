"""Owns the reproducer file that is written when fluxir itself fails: what was asked, by which versions, and where it
broke.

Invariants: it holds no contents of the user's files beyond the exception's own message, is readable by this user
only, and writing it never fails the process a second time.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence

__all__ = ["brief", "write_reproducer"]


def write_reproducer(problem: BaseException, arguments: Sequence[str]) -> str | None:
    """Write ``fluxir-crash-TIME-PID.txt`` to the working directory, or else to the temporary one; its path, or None."""
    from .versions import versions

    now = datetime.datetime.now().astimezone()
    name = f"fluxir-crash-{now:%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    facts = "\n".join(f"{package} {version}" for package, version in versions().items())
    text = (
        f"fluxir failed at {now.isoformat(timespec='seconds')}\n\n"
        f"command\n\n    {shlex.join(['fluxir', *arguments])}\n\n"
        f"versions\n\n{_indented(facts)}\n    {platform.platform()}\n\n"
        f"settings\n\n{_indented(_settings())}\n\n"
        f"traceback\n\n{_indented(''.join(traceback.format_exception(problem)))}\n"
    )
    for directory in (os.getcwd, tempfile.gettempdir):
        try:
            path = os.path.join(directory(), name)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    print(text, file=sys.stderr)
    return None


def brief(text: str, limit: int = 300) -> str:
    """The first line of ``text``, cut to ``limit`` characters."""
    line = text.strip().splitlines()[0] if text.strip() else "no message"
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _settings() -> str:
    from .. import config
    from ..errors import FluxError

    try:
        now = config.get()
    except FluxError as problem:
        return problem.message
    return "\n".join(f"{name} = {getattr(now, name)!r}" for name in config.SETTINGS)


def _indented(text: str) -> str:
    return "\n".join("    " + line if line else "" for line in text.rstrip().splitlines())
