"""Optimisers around others: gradients collected over several steps, and training in narrow float types.

Each has the interface of an optimiser and keeps what it needs under its own name in `state.extra`; they may be nested:
`LossScale(AccumGrad(MasterWeights(Adam()), 4))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.optim.core import (
    Optimiser,
    OptState,
    _gathered,
    by_path,
    is_float,
    parameters,
    replaced,
    scalar,
    working_dtype,
)


@dataclass(frozen=True, eq=False)
class Wrapper(Optimiser):
    """An optimiser that has another inside."""

    inner: Optimiser

    @property
    def parts(self) -> tuple[Optimiser, ...]:
        return self.inner.parts

    @property
    def key(self) -> str:
        """The name of what it keeps in `state.extra`."""
        return type(self).__name__

    def keep(self, state: OptState, value: Any) -> OptState:
        """The state with this in `extra`. FX1102 if a wrapper of this class is inside already."""
        return dataclasses.replace(state, extra={**state.extra, self.key: value})

    def begun(self, state: OptState, value: Any) -> OptState:
        """As `keep`, for `init`."""
        if self.key in state.extra:
            raise fx.error("FX1102", f"a {self.key} is inside another {self.key}")
        return self.keep(state, value)

    def scale_of(self, state: OptState) -> Any:
        """The factor by which the loss is to be multiplied before it is differentiated; None for 1."""
        return self.inner.scale_of(state) if isinstance(self.inner, Wrapper) else None


@dataclass(frozen=True, eq=False)
class AccumGrad(Wrapper):
    """The mean of the gradients of `count` steps makes one update: batches larger than fit into memory.

    In the steps between, the model comes out as it went in.
    """

    count: int

    def init(self, model: Any) -> OptState:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise fx.error("FX1102", f"AccumGrad: the count is {self.count!r}, it must be an integer of at least 1")
        state = self.inner.init(model)
        found = parameters(model)
        sums = {p: fx.zeros(found[p].shape, dtype=working_dtype(found[p])) for p in state.slots}
        return self.begun(state, {"sums": sums, "seen": np.asarray(0, np.int64)})

    def update(self, model: Any, grads: Any, state: OptState) -> tuple[Any, OptState]:
        held = state.extra[self.key]
        given = _gathered(state.members, by_path(model), by_path(grads))
        sums = {p: s + fx.astype(given[p], s.dtype) if p in given else s for p, s in held["sums"].items()}
        seen = held["seen"] + 1
        leaves = by_path(model)
        # Only what the update changes goes through the branch, not the whole model.
        names = [m.path for m in state.members]

        def step(now: Any) -> Any:
            values, sums, state = now
            whole = replaced(model, values)
            mean = {p: fx.astype(s / self.count, leaves[p].dtype) for p, s in sums.items()}
            full = {m.path: mean[m.path] if m.owner is None else None for m in state.members}
            new, after = self.inner.update(whole, _tree_of(whole, full), state)
            found = by_path(new)
            return {p: found[p] for p in values}, fx.tree.map(fx.zeros_like, sums), after

        bare = dataclasses.replace(state, extra={k: x for k, x in state.extra.items() if k != self.key})
        now = ({p: leaves[p] for p in names}, sums, bare)
        values, sums, after = fx.cond(seen == self.count, step, lambda now: now, now)
        seen = fx.where(seen == self.count, fx.zeros_like(seen), seen)
        return replaced(model, values), self.keep(after, {"sums": sums, "seen": seen})


def _tree_of(model: Any, grads: dict[str, Any]) -> Any:
    """A gradient with the structure of the model from gradients by path."""
    structure = fx.tree.flatten(model)[1]
    return structure.unflatten([grads.get(fx.tree.path_text(p)) for p in structure.paths()])


@dataclass(frozen=True, eq=False)
class MasterWeights(Wrapper):
    """Parameters in f16 or bf16 with a copy in f32, to which the updates are made; the model gets it rounded (Micikevicius et
    al., "Mixed precision training", 2018).

    Without it an update smaller than half a unit in the last place of a narrow parameter is lost.
    """

    def init(self, model: Any) -> OptState:
        narrow = {p: x for p, x in parameters(model).items() if working_dtype(x) != fx.dtype(x.dtype)}
        state = self.inner.init(model)
        return self.begun(state, {p: fx.astype(x, "f32") for p, x in narrow.items() if p in state.slots})

    def update(self, model: Any, grads: Any, state: OptState) -> tuple[Any, OptState]:
        masters = state.extra[self.key]
        owners = {m.path: m.owner or m.path for m in state.members}
        wide = {p: masters[o] for p, o in owners.items() if o in masters}
        new, after = self.inner.update(replaced(model, wide), grads, state)
        found = by_path(new)
        leaves = by_path(model)
        rounded = {p: fx.astype(found[p], leaves[p].dtype) for p in wide}
        return replaced(new, rounded), self.keep(after, {p: found[p] for p in masters})


@dataclass(frozen=True, eq=False)
class LossScale(Wrapper):
    """Dynamic scaling of the loss, so that small gradients do not vanish in f16 (Micikevicius et al. 2018, section 3.2).

    The loss is multiplied by a scale before it is differentiated (`fit` does it, or `opt.scaled(loss, state)`), the gradients
    are divided by it. A step with a gradient that is not finite changes nothing and multiplies the scale by `shrink`; after
    `interval` good steps it is multiplied by `grow`. As PyTorch's GradScaler.
    """

    initial: float = 65536.0
    grow: float = 2.0
    shrink: float = 0.5
    interval: int = 2000

    def init(self, model: Any) -> OptState:
        state = self.inner.init(model)
        return self.begun(state, {"scale": scalar(self.initial), "good": np.asarray(0, np.int64)})

    def scale_of(self, state: OptState) -> Any:
        return state.extra[self.key]["scale"]

    def scaled(self, loss: Callable[..., Any], state: OptState) -> Callable[..., Any]:
        """The function `loss` times the scale: differentiate this one. Its value is that of the loss times the scale."""

        def run(*args: Any, **kwargs: Any) -> Any:
            value = loss(*args, **kwargs)
            return value * fx.astype(self.scale_of(state), value.dtype)

        return run

    def update(self, model: Any, grads: Any, state: OptState) -> tuple[Any, OptState]:
        held = state.extra[self.key]
        scale = held["scale"]
        one = fx.ones_like(scale)
        # Divided in the type in which updates are computed: in f16 a small gradient would be lost again.
        plain = fx.tree.map(
            lambda g: fx.astype(g, working_dtype(g)) * fx.astype(one / scale, working_dtype(g)) if is_float(g) else g,
            grads,
        )
        given = _gathered(state.members, by_path(model), by_path(plain))
        fine = fx.asarray(True)
        for g in given.values():
            fine = fine & fx.all(fx.isfinite(g))
        new, after = self.inner.update(model, plain, state)

        def pick(a: Any, b: Any) -> Any:
            return fx.where(fine, a, b) if hasattr(a, "dtype") else a

        good = fx.where(fine, held["good"] + 1, fx.zeros_like(held["good"]))
        grown = good == self.interval
        rate = fx.where(fine, fx.where(grown, self.grow * one, one), self.shrink * one)
        kept = {"scale": scale * rate, "good": fx.where(grown, fx.zeros_like(good), good)}
        before, structure = fx.tree.flatten(model)
        chosen = structure.unflatten([pick(a, b) for a, b in zip(fx.tree.leaves(new), before, strict=True)])
        return chosen, self.keep(fx.tree.map(pick, after, state), kept)


__all__ = ["AccumGrad", "LossScale", "MasterWeights", "Wrapper"]
