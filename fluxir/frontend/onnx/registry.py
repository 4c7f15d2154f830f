"""The registry of ONNX operators: one function an operator (and version), found by domain, name and opset.

`@op("Conv")` registers a function. Its signature is the declaration: positional parameters are the inputs (one with a
default may be left out, `*xs` takes any number), keyword-only parameters are the attributes, with the kind of each as
annotation (`Int`, `Ints`, `Text`, ...) and without a default where the attribute is required. A first parameter `cx` is the
`Context` of the node. How an input arrives is said by its annotation:

- without one: a tensor or array to compute with (`values.tensor`);
- `Known`: as it is, for `values.ints_of` and the like: it decides what is compiled;
- `Raw`: as it is, whatever it may be.

`moves=True`: the function only moves elements about, so it may be given arrays of symbolic sizes and texts too (through
`library`, whose functions take them), and what only stored types hold passes through. `since` is the opset in which that
form of the operator appeared; the newest one that is not newer than the model's opset is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fluxir.frontend.onnx import schema

__all__ = [
    "DOMAINS", "HANDLERS", "Float", "Floats", "Handler", "Int", "Ints", "Known", "Raw", "Sparse", "Subgraph", "Text", "Texts",
    "Const", "Type", "find", "op", "since_of",
]  # fmt: skip

Known: TypeAlias = Any
Raw: TypeAlias = Any
Int: TypeAlias = int
Ints: TypeAlias = tuple[int, ...]
Float: TypeAlias = float
Floats: TypeAlias = tuple[float, ...]
Text: TypeAlias = str
Texts: TypeAlias = tuple[str, ...]
Const: TypeAlias = np.ndarray[Any, Any]
Sparse: TypeAlias = Any
Type: TypeAlias = Any
Subgraph: TypeAlias = Callable[..., tuple[Any, ...]]

KINDS: dict[str, int] = {
    "Float": 1, "Int": 2, "Text": 3, "Const": 4, "Subgraph": 5, "Floats": 6, "Ints": 7, "Texts": 8, "Sparse": 11, "Type": 13,
}  # fmt: skip
"""The number of each kind of attribute in ONNX's AttributeProto."""

DOMAINS: dict[str, int] = {
    "": 28, "ai.onnx.ml": 5, "com.microsoft": 1, "ai.onnx.preview.training": 1, "ai.onnx.preview": 1,
}  # fmt: skip
"""The newest opset of each domain that is known here."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input: how it arrives (`tensor`, `known`, `raw`), and whether it may be left out."""

    name: str
    kind: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Attr:
    """An attribute: the number of its kind, and whether a node must have it."""

    name: str
    kind: int
    required: bool


@dataclass(frozen=True, slots=True)
class Handler:
    """What stands for an operator since some opset."""

    name: str
    domain: str
    since: int
    fn: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    variadic: Parameter | None
    attributes: dict[str, Attr]
    context: bool
    moves: bool
    pure: bool

    def parameter(self, i: int) -> Parameter | None:
        """The declaration of the i-th input; None where the operator does not take so many."""
        return self.parameters[i] if i < len(self.parameters) else self.variadic


HANDLERS: dict[tuple[str, str], list[Handler]] = {}


def op(
    *names: str, since: int = 1, domain: str = "", moves: bool = False, pure: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for operators; see the module's text. `pure=False`: it must not be computed when compiling even
    where its inputs are known (random numbers)."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        handler = declared(names[0], domain, since, fn, moves, pure)
        for name in names:
            versions = HANDLERS.setdefault((domain, name), [])
            if any(h.since == since for h in versions):
                raise ValueError(f"{domain}:{name} since {since} is registered twice")
            versions.append(handler)
            versions.sort(key=lambda h: h.since)
        return fn

    return register


def declared(name: str, domain: str, since: int, fn: Callable[..., Any], moves: bool, pure: bool) -> Handler:
    """What the signature of `fn` says."""
    inputs: list[Parameter] = []
    variadic = None
    attributes = {}
    context = False
    for i, p in enumerate(inspect.signature(fn).parameters.values()):
        note = p.annotation if isinstance(p.annotation, str) else ""
        note = note.removesuffix(" | None")
        kind = {"Known": "known", "Raw": "raw"}.get(note, "tensor")
        if i == 0 and p.name == "cx":
            context = True
        elif p.kind == p.VAR_POSITIONAL:
            variadic = Parameter(p.name, kind, True)
        elif p.kind == p.KEYWORD_ONLY:
            attributes[p.name] = Attr(p.name, KINDS[note], p.default is p.empty)
        else:
            inputs.append(Parameter(p.name, kind, p.default is not p.empty))
    return Handler(name, domain, since, fn, tuple(inputs), variadic, attributes, context, moves, pure)


def find(domain: str, name: str, opset: int) -> Handler | None:
    """The function for an operator of a model's opset."""
    _declare_all()
    known = HANDLERS.get((schema.domain_of(domain), name), ())
    return next((h for h in reversed(known) if h.since <= opset), None)


def since_of(domain: str, name: str) -> int | None:
    """The first opset with an operator; None where it is not known at all."""
    _declare_all()
    known = HANDLERS.get((domain, name))
    return known[0].since if known else None


_DECLARED = False


def _declare_all() -> None:
    global _DECLARED
    if not _DECLARED:
        _DECLARED = True
        from fluxir.frontend.onnx import ops  # noqa: F401  (declares every operator)
