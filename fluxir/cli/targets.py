"""The verb ``targets``: what can be compiled for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..target import CpuTarget, GpuTarget, Target, all_targets, host, parse_target
from .common import Output, bytes_text, table, verb

__all__ = ["command", "complete_target"]


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Target names for the shell."""
    return [CompletionItem(target.name) for target in all_targets() if target.name.startswith(incomplete)]


def facts(target: Target) -> dict[str, Any]:
    """All fields of ``target`` by name, JSON-ready."""
    return {field.name: getattr(target, field.name) for field in fields(target)}


def _row(target: Target) -> tuple[str, str]:
    if isinstance(target, CpuTarget):
        machine = target.machine.replace("_", "-")
        where = f"this machine, {host().model}, {host().target.removeprefix('cpu:')}" if target.native else machine
        return target.name, f"{where}, {target.vector_bits}-bit vectors, {target.vector_registers} registers"
    assert isinstance(target, GpuTarget)
    major, minor = target.capability
    scope = {"": "and newer", "a": "only", "f": f"to {major}.x"}[target.variant]
    shared = bytes_text(target.shared_per_block)
    return (
        target.name,
        f"compute capability {major}.{minor} {scope}, PTX {target.ptx_version}, {shared} shared memory a block",
    )


@verb("targets", help="List the targets, or with NAME all facts of one.")
@click.argument("name", required=False, shell_complete=complete_target)
def command(output: Output, name: str | None) -> None:
    if name is not None:
        target = parse_target(name)
        rows = [
            (key, ", ".join(map(str, value)) if isinstance(value, tuple) else value)
            for key, value in facts(target).items()
        ]
        output.result(facts(target), lambda: table(rows))
        return
    found = all_targets()
    output.result([facts(target) for target in found], lambda: table([_row(target) for target in found]))
