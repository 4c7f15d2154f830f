"""The verb ``passes``: every pass with its options."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..errors import error
from .common import Output, table, verb

if TYPE_CHECKING:
    from ..passes.manager import PassInfo

__all__ = ["command", "registered_passes"]


def registered_passes() -> dict[str, PassInfo]:
    """All passes by name. Every module of the package is imported, since importing one is what registers its passes."""
    package = importlib.import_module("fluxir.passes")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"fluxir.passes.{module.name}")
    from ..passes.manager import PASSES

    return PASSES


def facts(info: PassInfo) -> dict[str, Any]:
    """The pass as JSON-ready data."""
    options = {name: {"kind": type(default).__name__, "default": default} for name, default in info.options.items()}
    return {"name": info.name, "level": info.level, "scope": info.scope, "options": options, "doc": info.doc}


def complete_pass(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Pass names for the shell."""
    return [CompletionItem(name) for name in sorted(registered_passes()) if name.startswith(incomplete)]


@verb("passes", help="List all passes, or with NAME the options and the description of one.")
@click.argument("name", required=False, shell_complete=complete_pass)
def command(output: Output, name: str | None) -> None:
    passes = registered_passes()
    if name is not None:
        if name not in passes:
            raise error(
                "FX0401", f"there is no pass named {name!r}", help="the passes are " + ", ".join(sorted(passes))
            )
        one = facts(passes[name])
        output.result(one, lambda: _page(one))
        return
    chosen = [facts(info) for _, info in sorted(passes.items())]

    def text() -> str:
        rows = [(one["name"], one["level"], _options(one), one["doc"].split("\n")[0]) for one in chosen]
        return table(rows, ("pass", "level", "options", "what it does"))

    output.result(chosen, text)


def _options(one: dict[str, Any]) -> str:
    return ", ".join(f"{name}={option['default']}" for name, option in one["options"].items()) or "-"


def _page(one: dict[str, Any]) -> str:
    options = [(f"  {name}", option["kind"], f"default {option['default']}") for name, option in one["options"].items()]
    head = f"{one['name']}   ({one['level']} level, one {one['scope']} at a time)"
    return "\n".join([head, "", one["doc"], *(["", "options", table(options)] if options else [])])
