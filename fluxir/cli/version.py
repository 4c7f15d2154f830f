"""The verb ``version``: fluxir, Python and the packages underneath."""

from __future__ import annotations

from .common import Output, table, verb
from .versions import versions

__all__ = ["command"]


@verb("version", help="Print the versions of fluxir, Python and the packages it stands on.")
def command(output: Output) -> None:
    found = versions()
    output.result(found, lambda: table(list(found.items())))
