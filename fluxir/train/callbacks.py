"""What `fit` calls: early stopping, smaller steps on a plateau, checkpoints, a progress bar."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fluxir as fx

if TYPE_CHECKING:
    from fluxir.train.fit import Run


class Callback:
    """The base class: all methods do nothing. What `state` returns goes into checkpoints, and comes back to `restore`."""

    last = False
    """Whether it is called after the others."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run) -> None:
        """After each step."""

    def on_epoch(self, run: Run) -> None:
        """After each epoch; `run.history[-1]` is complete."""

    def on_end(self, run: Run) -> None:
        """When the run ends, also by an error."""

    def state(self) -> Any:
        """What the callback remembers: dicts and lists of arrays and numbers."""
        return {}

    def restore(self, state: Any) -> None:
        """Take back what `state` returned."""


class _Function(Callback):
    def __init__(self, f: Callable[[Run], Any]) -> None:
        self.f = f

    def on_epoch(self, run: Run) -> None:
        self.f(run)


def as_callback(c: Any) -> Callback:
    """A callback; a function is called with the run after each epoch. FX1102."""
    if isinstance(c, Callback):
        return c
    if not callable(c):
        raise fx.error("FX1102", f"a callback is a function or a fx.train.Callback, not a {type(c).__name__}")
    return _Function(c)


class throttle(Callback):
    """Call `f(run)` after steps, but at most once in `seconds`, the first time after the first step."""

    def __init__(self, f: Callable[[Run], Any], seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.f, self.seconds, self.clock = f, seconds, clock
        self._next = -math.inf

    def on_step(self, run: Run) -> None:
        now = self.clock()
        if now >= self._next:
            self._next = now + self.seconds
            self.f(run)


class Monitor(Callback):
    """The base of callbacks that watch one number of the history: by default the validation loss, or the loss without one.

    An epoch is better when its number is below the best by more than `least_change` (with `largest`, above).
    """

    def __init__(
        self, monitor: str | None = None, *, patience: int, least_change: float = 0.0, largest: bool = False
    ) -> None:
        self.monitor, self.patience, self.least_change, self.largest = monitor, patience, least_change, largest
        self.best, self.bad = (-math.inf if largest else math.inf), 0

    def value(self, run: Run) -> float:
        """The number of this epoch. FX1102 if the history has no such."""
        row = run.history[-1]
        name = self.monitor or ("validation loss" if "validation loss" in row else "loss")
        if name not in row:
            raise fx.error(
                "FX1102", f"{type(self).__name__}: the history has no {name!r}", help=f"it has {', '.join(row)}"
            )
        return row[name]

    def better(self, run: Run) -> bool:
        """Note the number of this epoch; whether it is the best."""
        x = self.value(run)
        found = x > self.best + self.least_change if self.largest else x < self.best - self.least_change
        if found:
            self.best, self.bad = x, 0
        else:
            self.bad += 1
        return found

    def state(self) -> Any:
        return {"best": self.best, "bad": self.bad}

    def restore(self, state: Any) -> None:
        self.best, self.bad = state["best"], state["bad"]


class EarlyStopping(Monitor):
    """End the run when no epoch was better for `patience` epochs; with `restore_best` the model of the best one is kept."""

    def __init__(
        self, monitor: str | None = None, *, patience: int = 10, restore_best: bool = True, **options: Any
    ) -> None:
        super().__init__(monitor, patience=patience, **options)
        self.restore_best = restore_best
        self.kept: list[Any] | None = None

    def on_epoch(self, run: Run) -> None:
        if self.better(run):
            if self.restore_best:
                self.kept = fx.tree.leaves(run.model)
        elif self.bad >= self.patience:
            run.stop = True

    def on_end(self, run: Run) -> None:
        if run.stop and self.kept is not None and self.bad >= self.patience:
            run.model = fx.tree.unflatten(fx.tree.flatten(run.model)[1], self.kept)

    def state(self) -> Any:
        return {**super().state(), "kept": self.kept}

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.kept = state["kept"]


class ReduceOnPlateau(Monitor):
    """Multiply a setting of the optimiser, by default `lr`, by `factor` when no epoch was better for more than `patience`
    epochs; then wait `cooldown` epochs. Not below `least`. The compiled step stays as it is.
    """

    def __init__(
        self, monitor: str | None = None, *, factor: float = 0.1, patience: int = 10, cooldown: int = 0, least: float = 0.0,
        setting: str = "lr", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(monitor, patience=patience, **options)
        self.factor, self.cooldown, self.least, self.setting = factor, cooldown, least, setting
        self.waiting = 0

    def on_epoch(self, run: Run) -> None:
        self.better(run)
        if self.waiting:
            self.waiting -= 1
            self.bad = 0
        if self.bad > self.patience:
            change = {self.setting: lambda x: max(x * self.factor, self.least)}
            run.state = fx.optim.adjust(run.state, **change)
            self.waiting, self.bad = self.cooldown, 0

    def state(self) -> Any:
        return {**super().state(), "waiting": self.waiting}

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.waiting = state["waiting"]


class Checkpoint(Callback):
    """Write what a run needs to be resumed to `path`, every `epochs` epochs or, if given, every `steps` steps.

    The file is replaced as a whole: a run that is killed while it writes leaves the one before.
    """

    last = True

    def __init__(self, path: str | os.PathLike[str], *, epochs: int = 1, steps: int | None = None) -> None:
        for name, n in (("epochs", epochs), ("steps", 1 if steps is None else steps)):
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise fx.error("FX1102", f"Checkpoint: {name} is {n!r}, it must be an integer of at least 1")
        self.path, self.epochs, self.steps = path, epochs, steps

    def on_step(self, run: Run) -> None:
        if self.steps is not None and run.step % self.steps == 0:
            run.save(self.path)

    def on_epoch(self, run: Run) -> None:
        if self.steps is None and run.epoch % self.epochs == 0:
            run.save(self.path)


class StopOnNaN(Callback):
    """End the run at the first loss that is not finite."""

    def on_step(self, run: Run) -> None:
        if not math.isfinite(run.loss):
            run.stop = True


class Progress(Callback):
    """A bar for each epoch, and a line with its numbers. `fit` adds it on a terminal."""

    last = True

    def __init__(self) -> None:
        self._bar: Any = None

    @staticmethod
    def wanted(show: bool | None) -> bool:
        """Whether a bar is shown: as asked, or if the output goes to a terminal."""
        return bool(sys.stderr.isatty()) if show is None else show

    def on_step(self, run: Run) -> None:
        import click

        if self._bar is None:
            self._bar = click.progressbar(
                length=run.batches or 0, label=f"epoch {run.epoch + 1}/{run.epochs}", file=sys.stderr, show_pos=True,
                item_show_func=lambda text: text,
            )  # fmt: skip
            self._bar.__enter__()
            self._bar.update(run.batch - 1)  # what was done before the run was resumed
        self._bar.update(1, f"loss {run.loss:.4g}")

    def on_epoch(self, run: Run) -> None:
        import click

        self._close()
        row = run.history[-1]
        click.echo(
            f"epoch {run.epoch}/{run.epochs}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"),
            err=True,
        )

    def on_end(self, run: Run) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


__all__ = [
    "Callback", "Checkpoint", "EarlyStopping", "Monitor", "Progress", "ReduceOnPlateau", "StopOnNaN", "as_callback",
    "throttle",
]  # fmt: skip
