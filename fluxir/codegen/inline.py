"""Recipes as text: an op without a spelling is expanded once, and its instructions are copied wherever it occurs.

A recipe such as that of `sin` is a hundred ops; making them as IR for each use was most of the time spent on writing
text. A template is what one expansion looks like in LLVM IR, with numbered holes for operands and registers. Only
straight-line recipes have one; `legalize(defer=True)` has replaced the others before.

In kernels on vectors long recipes become functions that are called, which halves the time LLVM needs to translate such
kernels: nothing is lost where a scalar recipe serves the rest of a row, and little where a vector recipe is long. In
all other kernels they are copied, or LLVM could not vectorise the loop around them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fluxir.codegen.emit import Dialect, Emitter, Unit
from fluxir.codegen.legalize import expansion, needs_of, rule_of
from fluxir.codegen.part import CODE, Part
from fluxir.ir.core import Op
from fluxir.ir.types import VectorType
from fluxir.target import Target

__all__ = ["Recipes"]

_LONG_SCALAR, _LONG_VECTOR = 16, 80  # instructions from which a recipe is called instead of copied
_NAME = re.compile(r"%([vx])(\d+)\b")


@dataclass(frozen=True)
class _Template:
    body: str
    result: str
    registers: int
    declares: dict[str, str]


class Recipes:
    """The templates of one module."""

    def __init__(
        self, target: Target, dialect: Dialect, fast: bool, attributes: str, publish: Callable[[Part, str], str]
    ) -> None:
        self.needs = needs_of(target)
        self.dialect, self.fast, self.attributes = dialect, fast, attributes
        self._publish = publish  # has a part translated and returns its name
        self._templates: dict[Any, _Template] = {}
        self._functions: dict[Any, str] = {}

    def expand(self, e: Emitter, op: Op, call: bool = False) -> str | None:
        """Write `op` into `e` by its recipe and return the register; None where the op has a spelling of its own.

        With `call` a long recipe becomes a function.
        """
        rule = rule_of(op, self.needs)
        if rule is None:
            return None
        key = (op.name, tuple(v.type for v in op.operands), repr(op.attrs))
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = self._make(op)
        e.unit.declares.update({k: v for k, v in template.declares.items() if k not in e.unit.declares})
        given = [e.get(v) for v in op.operands]
        long = _LONG_VECTOR if isinstance(op.result.type, VectorType) else _LONG_SCALAR
        if call and template.registers > long:
            typed = ", ".join(f"{e.register(v.type)} {g}" for v, g in zip(op.operands, given, strict=True))
            return e.let(
                f"call {e.register(op.result.type)} @{self._function(e, op, key, template)}({typed})", pure=True
            )
        base = e.reserve(template.registers)

        def fill(m: re.Match[str]) -> str:
            return given[int(m[2])] if m[1] == "x" else f"%v{base + int(m[2])}"

        if template.body:
            e.body.append(_NAME.sub(fill, template.body))
        return _NAME.sub(fill, template.result)

    def _function(self, e: Emitter, op: Op, key: Any, template: _Template) -> str:
        """The name of the function that holds a template, a part of its own."""
        result = e.register(op.result.type)
        types = [e.register(v.type) for v in op.operands]
        name = self._functions.get(key)
        if name is None:
            part = Part(self.dialect, self.attributes)
            part.plain.declares.update(template.declares)
            params = [f"{t} %x{i}" for i, t in enumerate(types)]
            body = f"{template.body}\n  ret {result} {template.result}"
            part.define(part.plain, result, CODE, params, body, shared=True)
            name = self._publish(part, f"recipe.{op.name}.{e.suffix(op.operands[0].type)}")
            self._functions[key] = name
        e.unit.declare(name, f"hidden {result}", types)
        return name

    def _make(self, op: Op) -> _Template:
        args, ops, result = expansion(op, self.needs)
        e = Emitter(Unit(self.dialect, "recipe"), {}, self.fast)
        for i, a in enumerate(args):
            e.values[a] = f"%x{i}"
        for o in ops:
            assert not o.blocks, f"the recipe of {op.name} branches: legalize must replace it first"
            e.op(o)
        assert not e.prelude
        return _Template("\n".join(e.body), e.get(result), e.reserve(0), e.unit.declares)
