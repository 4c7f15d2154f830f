"""Optimisers as pure functions on trees: `state = opt.init(model)`, `model, state = opt.update(model, grads, state)`.

Owns what all of them share: which leaves are parameters, the state and its groups, and the walk over the leaves. A rule itself
is the few lines of one class (`gradient`, `momentum`, `adam`, ...): it turns the gradient of one leaf into the change that is
subtracted from the leaf.

Everything in a state is an array in a tree, settings such as the learning rate too, so a compiled step takes new settings
without being compiled again. Invariants: `update` makes nothing but traced operations; a leaf that is no parameter (an
integer, a bool, running statistics, a number, a function) comes out as it went in; a leaf has the element type that it had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import fluxir as fx

Schedule = Callable[[Any], Any]
Setting = float | Schedule
"""A number, or a function of the number of updates made so far (see `schedules`)."""

Slots = dict[str, Any]
Where = str | Callable[[str], bool] | Iterable[str] | None
"""Part of a model: a path such as "layers.0" with all below it, several paths, a test of a path, or None: all."""


def option(default: Any) -> Any:
    """A field of an optimiser that is fixed: it chooses what is computed, and is no number of the state."""
    return field(default=default, metadata={"option": True})


class Member(NamedTuple):
    """One parameter of the model: its group, and the path of the parameter it is tied to, if any."""

    path: str
    group: int
    owner: str | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters with common settings. `hyper` and `memory` have an entry for each rule of a chain; `count` is the number of
    updates these parameters had."""

    hyper: tuple[dict[str, Any], ...]
    memory: tuple[dict[str, Any], ...]
    count: Any
    frozen: bool = field(default=False, metadata={"static": True})


@dataclass(frozen=True, eq=False)
class OptState:
    """What an optimiser remembers: `slots[path]` are the arrays of a parameter, `step` counts the updates, `extra` belongs to
    wrappers such as `AccumGrad`."""

    step: Any
    groups: tuple[Group, ...]
    slots: dict[str, tuple[Slots, ...]]
    extra: dict[str, Any]
    members: tuple[Member, ...] = field(metadata={"static": True})

    def __repr__(self) -> str:
        arrays = [x for x in fx.tree.leaves((self.slots, self.extra)) if hasattr(x, "nbytes")]
        frozen = sum(self.groups[m.group].frozen for m in self.members)
        held = f", {frozen} frozen" if frozen else ""
        size = sum(int(x.nbytes) for x in arrays)
        return f"OptState(step={self.step}, {len(self.members)} parameters{held}, {size} bytes)"


# ---- parameters -----------------------------------------------------------------------------------------------------------


def is_float(x: Any) -> bool:
    """Whether a leaf is an array (tensor, type) of floats. A Python number is none: it is a setting of the model."""
    d = getattr(x, "dtype", None)
    return d is not None and bool(fx.isdtype(fx.dtype(d), "real floating"))


def parameters(model: Any) -> dict[str, Any]:
    """The parameters of a model by path: its float arrays, but for dataclass fields with the metadata `state` (running
    statistics of a layer), which training computes in another way."""
    out: dict[str, Any] = {}
    _collect(model, (), out)
    return out


def _collect(x: Any, path: tuple[Any, ...], out: dict[str, Any]) -> None:
    children, structure = fx.tree.flatten(x, lambda y: y is not x)
    if structure.kind == "leaf":
        if is_float(x):
            out[fx.tree.path_text(path)] = x
        return
    held = set()
    if structure.kind == "dataclass":
        held = {f.name for f in dataclasses.fields(x) if f.metadata.get("state")}
    for key, child in zip(structure.keys, children, strict=True):
        if key not in held:
            _collect(child, (*path, key), out)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the text of their path; None is a leaf too."""
    leaves, structure = fx.tree.flatten(tree, lambda x: x is None)
    return {fx.tree.path_text(p): x for p, x in zip(structure.paths(), leaves, strict=True)}


def replaced(model: Any, new: Mapping[str, Any]) -> Any:
    """The model with other leaves at some paths."""
    leaves, structure = fx.tree.flatten(model)
    texts = [fx.tree.path_text(p) for p in structure.paths()]
    return structure.unflatten([new.get(t, x) for t, x in zip(texts, leaves, strict=True)])


def working_dtype(x: Any) -> Any:
    """The type in which updates are computed: f32 for the narrow types, and else the leaf's own."""
    d = fx.dtype(x.dtype)
    return fx.dtype("f32") if str(d) in ("f16", "bf16") else d


def scalar(x: float) -> Any:
    """A setting as it lies in a state: f64, so that 0.999 is 0.999 for every element type."""
    return np.asarray(x, np.float64)


# ---- optimisers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Optimiser:
    """The base class. A rule has number fields (its settings), and says in `slots`, `scalars` and `rule` what it does."""

    @property
    def parts(self) -> tuple[Optimiser, ...]:
        """The rules of a chain in order."""
        return (self,)

    def init(self, model: Any) -> OptState:
        """The state for a model before its first update. Arrays that occur twice in the model are one parameter."""
        found = parameters(model)
        if not found:
            raise fx.error("FX1101", f"{type(self).__name__}.init: the model has no array of floats")
        seen: dict[int, str] = {}
        members = []
        for path, x in found.items():
            owner = seen.setdefault(id(x), path)
            members.append(Member(path, 0, None if owner == path else owner))
        parts = self.parts
        for part in parts:
            part.check()
        group = Group(tuple(p.hyper() for p in parts), tuple(p.memory() for p in parts), np.asarray(0, np.int64))
        slots = {m.path: tuple(p.slots(found[m.path]) for p in parts) for m in members if m.owner is None}
        return OptState(np.asarray(0, np.int64), (group,), slots, {}, tuple(members))

    def update(self, model: Any, grads: Any, state: OptState) -> tuple[Any, OptState]:
        """The model after one step, and the new state. `grads` has the structure of the model; None leaves a leaf alone."""
        leaves = by_path(model)
        given = _gathered(state.members, leaves, by_path(grads))
        groups, cs = self._settings(state)
        of = {m.path: m.group for m in state.members}
        moving = {path: g for path, g in given.items() if not state.groups[of[path]].frozen}
        values = {path: fx.astype(leaves[path], working_dtype(leaves[path])) for path in moving}
        ds = {path: fx.astype(g, values[path].dtype) for path, g in moving.items()}
        slots = {path: list(s) for path, s in state.slots.items()}
        for i, part in enumerate(self.parts):
            c = {path: cs(of[path], i, values[path].dtype) for path in ds}
            ds = part.together(ds, c)
            for path, d in ds.items():
                ds[path], slots[path][i] = part.rule(d, values[path], slots[path][i], c[path])
        new = {path: fx.astype(values[path] - d, leaves[path].dtype) for path, d in ds.items()}
        for m in state.members:
            if m.owner in new:
                new[m.path] = new[m.owner]
        done = OptState(state.step + 1, groups, {p: tuple(s) for p, s in slots.items()}, state.extra, state.members)
        return replaced(model, new), done

    def _settings(self, state: OptState) -> tuple[tuple[Group, ...], Callable[[int, int, Any], SimpleNamespace]]:
        """The groups after this step, and the settings of a group for a rule and an element type."""
        groups: list[Group] = []
        scalars: list[list[dict[str, Any]]] = []
        for g in state.groups:
            if g.frozen:
                groups.append(g)
                scalars.append([])
                continue
            count = g.count + 1
            t = fx.astype(count, "f64")
            made, memory = [], []
            for part, h, m in zip(self.parts, g.hyper, g.memory, strict=True):
                c, new = part.scalars({**h, **part.scheduled(state.step)}, t, m)
                made.append(c)
                memory.append(new)
            groups.append(dataclasses.replace(g, count=count, memory=tuple(memory)))
            scalars.append(made)
        known: dict[Any, SimpleNamespace] = {}

        def get(group: int, part: int, dtype: Any) -> SimpleNamespace:
            key = (group, part, str(dtype))
            if key not in known:
                known[key] = SimpleNamespace(**{k: fx.astype(x, dtype) for k, x in scalars[group][part].items()})
            return known[key]

        return tuple(groups), get

    def hyper(self) -> dict[str, Any]:
        """The settings that lie in the state: the number fields that follow no schedule."""
        return {k: scalar(x) for k, x in self._numbers().items() if not callable(x)}

    def scheduled(self, step: Any) -> dict[str, Any]:
        """The settings that follow a schedule, after `step` updates."""
        return {k: fx.astype(x(step), "f64") for k, x in self._numbers().items() if callable(x)}

    def _numbers(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("option")}

    def check(self) -> None:
        """Refuse settings that are no numbers. FX1102."""
        for name, x in self._numbers().items():
            if not callable(x) and (isinstance(x, bool) or not isinstance(x, int | float | np.number) or x != x):
                raise fx.error("FX1102", f"{type(self).__name__}: {name} is {x!r}",
                               help="give a number, or a schedule: a function of the step")  # fmt: skip

    # What a rule says.

    def memory(self) -> dict[str, Any]:
        """Numbers that the rule keeps for each group."""
        return {}

    def slots(self, p: Any) -> Slots:
        """The arrays that the rule keeps for a parameter, before the first update."""
        return {}

    def scalars(self, h: dict[str, Any], t: Any, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The numbers (f64) that `rule` uses in the t-th update of a group (t from 1), and the new memory."""
        return h, memory

    def together(self, ds: dict[str, Any], c: dict[str, SimpleNamespace]) -> dict[str, Any]:
        """A change of all gradients at once, before `rule` sees each."""
        return ds

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        """From the gradient `d` of the parameter `p` (in a chain: what the rule before made of it) the change that is
        subtracted from it, and the new slots. `c` has the numbers that `scalars` gave."""
        return d, s


def _gathered(members: Sequence[Member], leaves: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    """The gradient of each parameter; those of tied ones are added. FX1103 where model, gradient and state disagree."""
    out: dict[str, Any] = {}
    for m in members:
        if m.path not in leaves or not is_float(leaves[m.path]):
            raise fx.error("FX1103", f"the state has a parameter {m.path!r}, which the model has not",
                           help="the state belongs to another model: make one with init")  # fmt: skip
        if m.path not in grads:
            raise fx.error("FX1103", f"the gradient has nothing at {m.path!r}",
                           help="a gradient has the structure of the model; None stands for no gradient")  # fmt: skip
        g, p = grads[m.path], leaves[m.path]
        if g is None:
            continue
        if tuple(np.shape(g) if isinstance(g, int | float) else g.shape) != tuple(p.shape):
            raise fx.error("FX1103", f"the gradient at {m.path!r} is {list(g.shape)}, the parameter {list(p.shape)}")
        key = m.owner if m.owner is not None else m.path
        out[key] = out[key] + g if key in out else g
    return out


class Chain(Optimiser):
    """Rules one after the other: each gets what the one before made of the gradient, and the last change is subtracted.

    fx.optim.Chain(fx.optim.ClipNorm(1.0), fx.optim.WeightDecay(1e-4), fx.optim.Momentum(0.1))
    """

    def __init__(self, *rules: Optimiser) -> None:
        for r in rules:
            if not isinstance(r, Optimiser) or type(r).update is not Optimiser.update:
                raise fx.error("FX1102", f"Chain: {type(r).__name__} is no rule",
                               help="wrappers such as AccumGrad go around a chain, not into it")  # fmt: skip
        if not rules:
            raise fx.error("FX1102", "Chain: no rule is given")
        object.__setattr__(self, "rules", tuple(part for r in rules for part in r.parts))

    rules: tuple[Optimiser, ...]

    @property
    def parts(self) -> tuple[Optimiser, ...]:
        return self.rules

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.rules))})"


# ---- parts of a model -------------------------------------------------------------------------------------------------------


def chosen(members: Sequence[Member], where: Where) -> set[str]:
    """The paths of the parameters that `where` names. FX1104 if there is none."""
    paths = [m.path for m in members]
    if where is None:
        return set(paths)
    if callable(where):
        found = {p for p in paths if where(p)}
    else:
        roots = [where] if isinstance(where, str) else list(where)
        found = set()
        for root in roots:
            below = {p for p in paths if root == "" or p == root or p.startswith(root + ".")}
            if not below:
                raise fx.error("FX1104", f"no parameter is at or below {root!r}", help=f"there are: {_some(paths)}")
            found |= below
    if not found:
        raise fx.error("FX1104", "no parameter is chosen", help=f"there are: {_some(paths)}")
    # What is tied is one parameter: choosing one of its places chooses all.
    owners = {m.owner or m.path for m in members if m.path in found}
    return {m.path for m in members if (m.owner or m.path) in owners}


def _some(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:8])) + (", ..." if len(paths) > 8 else "")


def _regrouped(state: OptState, where: Where, change: Callable[[Group], Group]) -> OptState:
    """The state with `change` made to the groups of the chosen parameters; a group of which some are chosen is split."""
    paths = chosen(state.members, where)
    groups, members = list(state.groups), list(state.members)
    for i, g in enumerate(state.groups):
        inside = [k for k, m in enumerate(members) if m.group == i]
        touched = [k for k in inside if members[k].path in paths]
        if not touched:
            continue
        if len(touched) == len(inside):
            groups[i] = change(g)
            continue
        # A group of its own: the arrays are copied, since no array may occur twice in a state that is donated.
        groups.append(change(fx.tree.map(np.array, g)))
        for k in touched:
            members[k] = members[k]._replace(group=len(groups) - 1)
    return dataclasses.replace(state, groups=tuple(groups), members=tuple(members))


def freeze(state: OptState, where: Where = None) -> OptState:
    """The state with parameters that updates leave alone until they are thawed: `freeze(state, "layers.0")`.

    Their gradients are not computed in a compiled step that has no other use for them.
    """
    return _regrouped(state, where, lambda g: dataclasses.replace(g, frozen=True))


def thaw(state: OptState, where: Where = None) -> OptState:
    """The state with frozen parameters that updates change again; their slots are as they were."""
    return _regrouped(state, where, lambda g: dataclasses.replace(g, frozen=False))


def adjust(state: OptState, where: Where = None, **settings: float | Callable[[float], float]) -> OptState:
    """The state with other settings, for all parameters or some: `adjust(state, lr=1e-4)`, `adjust(state, "head", lr=0.1)`.

    A function is given the old value: `adjust(state, lr=lambda lr: lr / 2)`. A compiled step takes the new values as they
    are; only a new group (a part of the model that had the settings of the rest) compiles it again. FX1104.
    """

    def change(g: Group) -> Group:
        hyper = [dict(h) for h in g.hyper]
        for name, x in settings.items():
            having = [h for h in hyper if name in h]
            if not having:
                names = sorted({n for h in hyper for n in h})
                raise fx.error("FX1104", f"no setting of this optimiser is called {name!r}, or it follows a schedule",
                               help=f"these can be set: {', '.join(names)}")  # fmt: skip
            for h in having:
                h[name] = scalar(float(x(float(h[name]))) if callable(x) else float(x))
        return dataclasses.replace(g, hyper=tuple(hyper))

    return _regrouped(state, where, change)


def setting(state: OptState, name: str, where: Where = None) -> float:
    """The value of a setting, of the first of the chosen parameters: `setting(state, "lr")`. FX1104."""
    paths = chosen(state.members, where)
    group = state.groups[next(m.group for m in state.members if m.path in paths)]
    for h in group.hyper:
        if name in h:
            return float(h[name])
    raise fx.error("FX1104", f"no setting of this optimiser is called {name!r}, or it follows a schedule")


__all__ = [
    "Chain", "Group", "Member", "OptState", "Optimiser", "Schedule", "Setting", "Slots", "Where", "adjust", "by_path",
    "chosen", "freeze", "is_float", "option", "parameters", "replaced", "scalar", "setting", "thaw", "working_dtype",
]  # fmt: skip
