"""The registry of kernel templates, and what a template hands back.

A template is a function `(group, target) -> Kernels | None`, registered with `@template(name, target=..., anchors=...)`.
It is asked when the group holds one of its `anchors` (an empty tuple: always), templates of higher priority first; the
first that does not return None makes the kernels. The `pointwise` template takes everything, so the search ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Block, Func
from fluxir.ir.types import MemType
from fluxir.schedule.group import Group

Ref = tuple[str, int]  # ("input", i) | ("output", j) | ("scratch", k)


@dataclass(frozen=True)
class Schedule:
    """The choices a template made, for one kernel. Subclasses add fields; printing shows those that are set, and whether the
    schedule was found by tuning."""

    tuned: ClassVar[bool] = False

    def as_tuned(self) -> Self:
        """The same choices, found by tuning (see tuned.py)."""
        found = replace(self)
        object.__setattr__(found, "tuned", True)
        return found

    def __str__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) not in (None, False)
        ]
        shown += ["tuned"] * self.tuned
        return f"{type(self).__name__.removesuffix('Schedule').lower()}({', '.join(shown)})"


@dataclass(frozen=True)
class Step:
    """One launch: `operands` names the memory of each kernel argument, the last `outputs` of which are written.

    Where a memory's type differs from the kernel argument's, the host reinterprets it (same bytes). `inplace` holds
    pairs of positions in `operands` (written, read) that may be one memory. `fold` gives the one memory the step writes
    from the arrays it reads: where these are constants, that happens when compiling and nothing is launched.
    """

    kernel: Func
    operands: tuple[Ref, ...]
    outputs: int = 1
    inplace: tuple[tuple[int, int], ...] = ()
    fold: Callable[..., np.ndarray[Any, Any]] | None = None


def pruned(step: Step) -> Step:
    """The step without the arguments that its kernel does not use."""
    block = step.kernel.block
    used = {v for op in block.walk() for v in op.operands} | {
        v for op in block.walk() for k in op.blocks for v in k.outs
    }
    reads = len(block.args) - step.outputs
    kept = [i for i, a in enumerate(block.args) if a in used or i >= reads]
    if len(kept) == len(block.args):
        return step
    place = {old: new for new, old in enumerate(kept)}
    kernel = step.kernel.with_block(Block([block.args[i] for i in kept], block.ops, block.outs))
    inplace = tuple((place[o], place[i]) for o, i in step.inplace if o in place and i in place)
    return Step(kernel, tuple(step.operands[i] for i in kept), step.outputs, inplace, step.fold)


@dataclass(frozen=True)
class Kernels:
    """Launches in order, and the types of the scratch memories between them. `copies` holds pairs (output, input): the
    input is first copied into the output, unless they are one memory. `prepared` gives other kernels for the same, which
    are better where their steps that `fold` cost nothing: what those read is constant, or the same in every round of a
    loop."""

    steps: tuple[Step, ...]
    scratch: tuple[MemType, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    prepared: Callable[[], Kernels] | None = field(default=None, compare=False)

    def pruned(self) -> Kernels:
        """These kernels without arguments that none of them uses."""
        other = self.prepared
        lazily = functools.cache(lambda: other().pruned()) if other is not None else None
        return replace(self, steps=tuple(pruned(s) for s in self.steps), prepared=lazily)

    def may_overwrite(self, output: int, source: int) -> bool:
        """Whether output and input may be one memory: no step reads the input, or only the one that writes the output, once,
        and that one says so."""
        reads = [s.operands[: -s.outputs].count(("input", source)) for s in self.steps]
        if not any(reads):
            return True
        writers = [n for n, s in enumerate(self.steps) if ("output", output) in s.operands]
        if (output, source) in self.copies or len(writers) != 1 or sum(reads) != 1 or reads[writers[0]] != 1:
            return False
        step = self.steps[writers[0]]
        return (step.operands.index(("output", output)), step.operands.index(("input", source))) in step.inplace


TemplateFunction = Callable[[Group, Any], "Kernels | None"]


@dataclass(frozen=True)
class Template:
    """A registered template."""

    name: str
    target: str  # the target kind: "cpu" or "nvptx"
    make: TemplateFunction
    anchors: tuple[str, ...] = ()
    priority: int = 0
    doc: str = field(default="", compare=False)


TEMPLATES: list[Template] = []


def template(
    name: str, *, target: str, anchors: Sequence[str] = (), priority: int = 0
) -> Callable[[TemplateFunction], TemplateFunction]:
    """Register a template for targets of kind `target`; see the module docstring."""

    def register(f: TemplateFunction) -> TemplateFunction:
        if any(t.name == name and t.target == target for t in TEMPLATES):
            raise ValueError(f"template {name!r} for {target} is registered twice")
        TEMPLATES.append(Template(name, target, f, tuple(anchors), priority, (f.__doc__ or "").strip().split("\n")[0]))
        TEMPLATES.sort(key=lambda t: -t.priority)
        return f

    return register


def select(group: Group, target: Any) -> tuple[str, Kernels]:
    """The name and the kernels of the first template that takes the group. FX0502 if none does."""
    present = {op.name for op in group.ops}
    for t in TEMPLATES:
        if t.target == target.kind and (not t.anchors or present & set(t.anchors)):
            made = t.make(group, target)
            if made is not None:
                return t.name, made.pruned()
    raise error(
        "FX0502",
        f"no template for {target.name} computes the group {group.name} ({', '.join(sorted(present))})",
        loc=group.loc,
    )
