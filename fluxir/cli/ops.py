"""The verb ``ops``: the table of ops and the rules each has, or everything about one op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..errors import FluxError
from .common import Output, table, verb

if TYPE_CHECKING:
    from ..ir.opdef import OpDef

__all__ = ["command"]

RULES = ("meaning", "element", "expand", "llvm", "vjp", "jvp", "batch", "samples")
"""What an op can have: a numpy meaning, how one element is computed, an expansion into other ops, a spelling in LLVM
or an approximation in simpler arithmetic, reverse and forward derivative, batching, samples that the tests run."""

TRANSFORMS = ("vjp", "jvp", "batch")
"""Those of `RULES` that an op may also do without, for a reason that the table shows."""


def _registry() -> dict[str, OpDef]:
    from .. import ops as ops
    from ..ir.opdef import REGISTRY

    return REGISTRY


def rules(op: OpDef) -> dict[str, bool]:
    """Which of `RULES` the op has."""
    return {
        "meaning": op.ref is not None or op.eval is not None,
        "element": op.element is not None,
        "expand": op.expand is not None,
        "llvm": op.llvm is not None or op.approx is not None,
        "vjp": op.vjp is not None,
        "jvp": op.jvp is not None,
        "batch": op.batch is not None,
        "samples": bool(op.samples),
    }


def transforms(op: OpDef) -> dict[str, str]:
    """For each of `TRANSFORMS` how it comes about: "yes" (a rule), the reason why none is needed, or "" for a hole."""
    from ..passes.reverse import FORWARD

    if op.level == "loop":
        return dict.fromkeys(TRANSFORMS, "loop level")  # transforms apply to tensor programs
    if op.name in FORWARD:
        return dict.fromkeys(TRANSFORMS, "control flow")  # the passes have rules for regions
    if op.constant:
        vjp = jvp = f"zero: {op.constant}"
    elif op.vjp is not None:
        vjp, jvp = "yes", "yes" if op.jvp is not None else "linear" if op.linear else "vjp transposed"
    else:
        vjp = jvp = "expansion" if op.expand is not None else ""
    return {"vjp": vjp, "jvp": jvp, "batch": _batching(op)}


def _batching(op: OpDef) -> str:
    from ..ops.rules import elementwise_element

    if op.batch is not None:
        return "yes"
    if op.element is elementwise_element:
        return "elementwise"
    if op.category == "control":
        return "control flow"
    if op.constant == "takes no value":
        return op.constant
    return "expansion" if op.expand is not None else "one by one"


def facts(op: OpDef) -> dict[str, Any]:
    """The op as JSON-ready data."""
    from ..ir.opdef import REQUIRED

    attributes = {
        name: {"kind": spec.kind} if spec.default is REQUIRED else {"kind": spec.kind, "default": str(spec.default)}
        for name, spec in op.attrs.items()
    }
    return {
        "name": op.name,
        "category": op.category,
        "level": op.level,
        "doc": op.doc,
        "attributes": attributes,
        "commutes": op.commutes,
        "effects": op.effects,
        "regions": op.regions,
        "rules": rules(op),
        "transforms": transforms(op),
        "examples": examples(op),
    }


def examples(op: OpDef) -> list[str]:
    """The samples as lines of IR, with the type that the op's rule gives; those without a plain form are left out."""
    from ..ir.core import Op, Value
    from ..ir.opdef import normalise_attrs
    from ..ir.printer import format_op
    from ..ir.types import parse_type

    lines = []
    for sample in op.samples:
        try:
            operands = [
                Value(parse_type(text), None, at, name) for at, (text, name) in enumerate(zip(sample.types, "xyzuvw"))
            ]
            made = Op(op, operands, normalise_attrs(op, sample.attrs))
            lines.append(format_op(made))
        except (FluxError, ValueError):
            continue
    return list(dict.fromkeys(lines))


def complete_op(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Op names for the shell."""
    return [
        CompletionItem(name, help=op.doc[:60])
        for name, op in sorted(_registry().items())
        if name.startswith(incomplete)
    ]


@verb("ops", help="List all ops with the rules each has, or with NAME everything about one op.")
@click.argument("name", required=False, shell_complete=complete_op)
@click.option("--category", help="Only ops of this category.")
@click.option("--lacking", type=click.Choice(RULES), help="Only ops that lack this rule, and a reason to do without.")
def command(output: Output, name: str | None, category: str | None, lacking: str | None) -> None:
    registry = _registry()
    if name is not None:
        from ..ir.opdef import lookup

        one = facts(lookup(name))
        output.result(one, lambda: _page(one))
        return
    chosen = [
        op
        for op in sorted(registry.values(), key=lambda op: (op.category, op.name))
        if (category is None or op.category == category)
        and (lacking is None or not (rules(op) | transforms(op))[lacking])
    ]

    def text() -> str:
        rows = [(op.name, op.category, op.level, *_cells(rules(op) | transforms(op))) for op in chosen]
        return "\n".join([table(rows, ("op", "category", "level", *RULES)), f"{len(chosen)} of {len(registry)} ops"])

    output.result([facts(op) for op in chosen], text)


def _cells(has: dict[str, Any]) -> list[str]:
    return [v if isinstance(v, str) and v else "yes" if v else "-" for v in has.values()]


def _page(one: dict[str, Any]) -> str:
    kind = ", ".join(
        [one["category"], f"{one['level']} level" if one["level"] != "both" else "tensor and loop level"]
        + (["operands may be swapped"] if one["commutes"] else [])
        + (["has effects"] if one["effects"] else [])
        + ([f"{one['regions']} regions"] if one["regions"] else [])
    )
    parts = [f"{one['name']}   ({kind})", "", one["doc"]]
    if one["attributes"]:
        rows = [
            (f"  {name}", spec["kind"], f"default {spec['default']}" if "default" in spec else "required")
            for name, spec in one["attributes"].items()
        ]
        parts += ["", "attributes", table(rows)]
    if one["examples"]:
        parts += ["", "examples", *(f"  {line}" for line in one["examples"])]
    has = [name for name, there in one["rules"].items() if there]
    reasons = {name: why for name, why in one["transforms"].items() if why not in ("", "yes")}
    lacks = [name for name, there in one["rules"].items() if not there and name not in reasons]
    parts += ["", f"has: {', '.join(has) or 'nothing'}; lacks: {', '.join(lacks) or 'nothing'}"]
    parts += [f"needs no {name}: {why}" for name, why in reasons.items()]
    return "\n".join(parts)
