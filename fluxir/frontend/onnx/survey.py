"""What a model needs of this importer, found without reading its weights or tracing it: every operator, in every graph and
function, with whether it is supported, and what to do where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fluxir.frontend.onnx import elements, registry, schema
from fluxir.frontend.onnx.graph import IGNORED, unsupported

__all__ = ["OperatorUse", "Survey", "survey"]


@dataclass(frozen=True, slots=True)
class OperatorUse:
    """An operator with how often it stands in the model. `problem` says what is not supported ("" where all is)."""

    domain: str
    name: str
    opset: int
    count: int
    problem: str = ""
    help: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All operators of a model, and the problems that are not about one operator."""

    opsets: dict[str, int]
    nodes: int
    operators: list[OperatorUse]
    problems: list[str] = field(default_factory=list)

    @property
    def supported(self) -> bool:
        return not self.problems and not any(o.problem for o in self.operators)


def survey(model: schema.Model) -> Survey:
    """Look through all nodes of a model."""
    assert model.graph is not None
    opsets = schema.versions(model.opsets)
    functions = {(f.domain, f.name) for f in model.functions}
    seen: Counter[tuple[str, str, int]] = Counter()
    faults: dict[tuple[str, str, int], list[str]] = {}
    bodies = [
        (model.graph.nodes, opsets),
        *[(f.nodes, {**opsets, **schema.versions(f.opsets)}) for f in model.functions],
    ]
    for nodes, known in bodies:
        for node in _all(nodes):
            domain = schema.domain_of(node.domain)
            if (node.domain, node.op) in functions:
                continue
            key = (domain, node.op, known.get(domain, 0))
            seen[key] += 1
            handler = registry.find(*key)
            if handler is not None:
                faults.setdefault(key, []).extend(_faults(node, handler))
    operators = []
    for key, count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        domain, name, opset = key
        if registry.find(*key) is None:
            problem = unsupported(*key)
            operators.append(OperatorUse(domain, name, opset, count, problem.message, problem.help or ""))
        else:
            wrong = list(dict.fromkeys(faults[key]))
            operators.append(OperatorUse(domain, name, opset, count, "; ".join(wrong[:3])))
    return Survey(opsets, sum(seen.values()), operators, _problems(model, opsets))


def _all(nodes: Sequence[schema.Node]) -> Iterator[schema.Node]:
    """The nodes and those of the graphs in their attributes."""
    todo = [nodes]
    while todo:
        for node in todo.pop():
            yield node
            todo += [g.nodes for g in node.graphs]


def _faults(node: schema.Node, handler: registry.Handler) -> list[str]:
    out = [
        f"the attribute {a.name!r} is not known in this opset"
        for a in node.attributes
        if a.name not in handler.attributes and a.name not in IGNORED
    ]
    given = {a.name for a in node.attributes}
    out += [
        f"the attribute {a.name!r} is missing"
        for a in handler.attributes.values()
        if a.required and a.name not in given
    ]
    if handler.variadic is None and len(node.inputs) > len(handler.parameters):
        out.append(f"it takes {len(handler.parameters)} inputs, not {len(node.inputs)}")
    return out


def _problems(model: schema.Model, opsets: dict[str, int]) -> list[str]:
    """What is wrong apart from operators: opsets that are not known yet, types that have no counterpart."""
    out = []
    for domain, version in opsets.items():
        newest = registry.DOMAINS.get(domain)
        if newest is not None and version > newest:
            out.append(
                f"opset {version} of {domain or 'ai.onnx'} is newer than {newest}, the newest that is known here"
            )
    assert model.graph is not None
    given = {t.name for t in model.graph.initializers}
    for info in model.graph.inputs:
        t = info.type.tensor if info.type is not None else None
        if t is None or info.name in given:
            if info.name not in given and info.type is not None and info.type.other is not None:
                out.append(f"the input {info.name!r} is a map, sparse or opaque value")
            continue
        e = elements.ELEMENTS.get(t.elem)
        if e is None or e.carrier is None:
            out.append(f"the input {info.name!r} holds {'unknown' if e is None else e.name} elements")
        elif t.shape is None:
            out.append(f"the input {info.name!r} has no number of axes")
    return out
