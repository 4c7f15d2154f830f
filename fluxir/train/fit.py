"""`fit`: a training loop whose step (forward, backward, update) is one compiled program.

Invariants: the same arguments give the same bits, whatever callbacks look at; a run resumed from a checkpoint gives the bits of
one that was not interrupted. Arrays handed to `fit` are not changed, and arrays handed to callbacks do not change later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.train.callbacks import Callback, Progress, as_callback
from fluxir.train.files import Saved, read, save
from fluxir.train.program import Program, arguments, as_batch, batch_size, batches, means, own, staged


class Run:
    """A training run: what `fit` returns and callbacks are given.

    `epoch` and `step` count from 0; `loss` and `metrics` are those of the last step; `history` has a dict for each epoch that is
    done, with the means over its examples. Setting `stop` ends the run after this step or epoch. `model` and `state` are copies
    and can be set, for example to `fx.optim.adjust(run.state, lr=1e-4)`.
    """

    def __init__(self, model: Any, state: Any, opt: Any, epochs: int) -> None:
        self._model, self._state = own(model), own(state)
        self.opt, self.epochs = opt, epochs
        self.epoch, self.batch, self.step = 0, 0, 0
        self.batches: int | None = None
        """How many batches an epoch has, where the data say it."""
        self.loss = float("nan")
        self.metrics: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.stop = False
        self.callbacks: list[Callback] = []
        self._sums: dict[str, float] = {}
        self._seen = 0

    @property
    def model(self) -> Any:
        """The model as it is now."""
        return own(self._model)

    @model.setter
    def model(self, model: Any) -> None:
        self._model = own(model)

    @property
    def state(self) -> Any:
        """The state of the optimiser as it is now."""
        return own(self._state)

    @state.setter
    def state(self, state: Any) -> None:
        self._state = own(state)

    def save(self, path: Any) -> None:
        """Write all that `fit(..., resume=path)` needs to go on from here."""
        meta = {
            "epoch": self.epoch, "batch": self.batch, "step": self.step, "history": self.history, "sums": self._sums,
            "seen": self._seen, "callbacks": [type(c).__name__ for c in self.callbacks],
        }  # fmt: skip
        kept = {f"{i}": c.state() for i, c in enumerate(self.callbacks)}
        save(path, {"model": self._model, "state": self._state, "callbacks": kept}, meta)

    def _restore(self, file: Saved) -> None:
        meta = file.meta
        names = [type(c).__name__ for c in self.callbacks]
        if not isinstance(meta, dict) or "callbacks" not in meta:
            raise fx.error(
                "FX1108", f"{file.path} is no checkpoint", help="a checkpoint is written by run.save or Checkpoint"
            )
        if meta["callbacks"] != names:
            raise fx.error(
                "FX1108", f"{file.path} was written with the callbacks {meta['callbacks']}, now there are {names}"
            )
        self._model = file.tree(self._model, ("model",))
        self._state = file.tree(self._state, ("state",))
        for i, c in enumerate(self.callbacks):
            c.restore(file.tree(None, ("callbacks", f"{i}")))
        self.epoch, self.batch, self.step = meta["epoch"], meta["batch"], meta["step"]
        self.history, self._sums, self._seen = meta["history"], meta["sums"], meta["seen"]

    def _count(self, values: dict[str, float], n: int) -> None:
        for k, v in values.items():
            self._sums[k] = self._sums.get(k, 0.0) + v * n
        self._seen += n

    def _means(self) -> dict[str, float]:
        out = {k: v / self._seen for k, v in self._sums.items()} if self._seen else {}
        self._sums, self._seen = {}, 0
        return out

    def __repr__(self) -> str:
        last = ", ".join(f"{k} {v:.4g}" for k, v in (self.history[-1] if self.history else {}).items() if k != "epoch")
        return f"Run({self.epoch} epochs, {self.step} steps{': ' + last if last else ''})"


def fit(
    model: Any,
    loss: Callable[..., Any],
    data: Any,
    opt: Any,
    *,
    epochs: int = 1,
    state: Any = None,
    key: Any = None,
    validate: Any = None,
    measure: Callable[..., Any] | None = None,
    callbacks: Iterable[Any] = (),
    resume: Any = None,
    show: bool | None = None,
    symbolic: bool = True,
    target: str | None = None,
    device: str | None = None,
) -> Run:
    """Train `model` to make `loss(model, *batch)` small, and return the `Run`: its `model`, `state`, `history`.

    `data` gives the batches of an epoch: a `fx.data.DataLoader`, a list of batches, or a tuple of arrays (one batch). The loss is
    a scalar float, the mean over the batch; it may return a pair with a dict of scalars to report, with the model that has new
    running statistics (`fx.nn.apply`), or with a tuple of both.

    `key`, a seed or key: the loss is called with `key=`, another one at each step. `validate`: data on which the loss (without a
    key) and `measure(model, *batch)`, a scalar or a dict of scalars, are evaluated after each epoch: "validation loss" and so on
    in the history. `callbacks`: objects of `fx.train.Callback`, or functions of the run, called after each epoch. `resume`: the
    path of a checkpoint to go on from. `show`: a progress bar; by default on a terminal only. The size of the batch is a symbol
    in the program unless `symbolic` is False; then every size is compiled by itself. `device`: where the steps run, as for
    `fx.jit`.
    """
    from fluxir.data.loader import as_key

    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise fx.error("FX1102", f"fit: epochs is {epochs!r}, it must be an integer of at least 0")
    run = Run(model, opt.init(model) if state is None else state, opt, epochs)
    run.callbacks = [as_callback(c) for c in callbacks]
    # What writes checkpoints comes last: it must see what the others did.
    run.callbacks.sort(key=lambda c: c.last)
    bar = Progress.wanted(show)
    listeners: Sequence[Callback] = [*run.callbacks, *([Progress()] if bar else [])]
    if resume is not None:
        run._restore(read(resume))
    if hasattr(data, "__len__") and not isinstance(data, tuple):
        run.batches = len(data)
    seed = as_key(key)
    loss, measure = staged(loss), None if measure is None else staged(measure)
    program = Program(
        _step(loss, opt, seed is not None),
        name="train_step",
        donated=2,
        symbolic=symbolic,
        target=target,
        device=device,
    )
    tests = _Tests(loss, measure, validate, symbolic)
    for c in listeners:
        c.on_start(run)
    try:
        while run.epoch < epochs and not run.stop:
            _epoch(run, program, data, seed, listeners)
            if run.batch:  # stopped inside an epoch
                break
            run.history.append({"epoch": run.epoch - 1, **run._means(), **tests(run._model)})
            for c in listeners:
                c.on_epoch(run)
    finally:
        for c in listeners:
            c.on_end(run)
    return run


def _epoch(run: Run, program: Program, data: Any, seed: Any, listeners: Sequence[Callback]) -> None:
    """One epoch, or what is left of it; afterwards `run.batch` is 0 unless the run was stopped inside."""
    found = batches(data, run.epoch, run.batch)
    stopped = False
    for batch in found:
        b = as_batch(batch)
        extra = () if seed is None else (seed, np.asarray(run.step, np.int64))
        run._model, run._state, value, metrics = program((run._model, run._state, extra), b)
        run.loss, run.metrics = float(value), {k: float(v) for k, v in metrics.items()}
        run._count({"loss": run.loss, **run.metrics}, batch_size(b))
        run.step += 1
        run.batch += 1
        for c in listeners:
            c.on_step(run)
        if run.stop:
            stopped = run.batches is None or run.batch < run.batches
            break
    if hasattr(found, "close"):
        found.close()  # ends the thread that makes batches ahead
    if not run.batch:
        raise fx.error("FX1105", "the data have no batch")
    if not stopped:
        run.batch = 0
        run.epoch += 1


def _step(loss: Callable[..., Any], opt: Any, keyed: bool) -> Callable[..., Any]:
    """The training step as a function of trees: (model, state, (key, step) or (), batch) -> (model, state, loss, metrics)."""

    def step(model: Any, state: Any, extra: Any, batch: Any) -> Any:
        options = {"key": fx.random.fold_in(*extra)} if keyed else {}
        scale = opt.scale_of(state) if hasattr(opt, "scale_of") else None

        def total(m: Any) -> Any:
            value, new, metrics = checked(loss(m, *arguments(batch), **options), m)
            scaled = value if scale is None else value * fx.astype(scale, value.dtype)
            return scaled, (value, new, metrics)

        (_, (value, new, metrics)), grads = fx.value_and_grad(total, has_aux=True)(model)
        model, state = opt.update(model if new is None else new, grads, state)
        return model, state, value, metrics

    return step


def checked(out: Any, model: Any) -> tuple[Any, Any, dict[str, Any]]:
    """What a loss returned as (loss, new model or None, metrics). FX1106."""
    value, *aux = out if isinstance(out, tuple) else (out,)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or len(shape) or not fx.isdtype(fx.dtype(dtype), "real floating"):
        what = f"{dtype}{list(shape)}" if shape is not None else f"a {type(value).__name__}"
        raise fx.error("FX1106", f"the loss is {what}, it must be one float", help="take the mean: fx.mean(...)")
    new, metrics = None, {}
    for part in aux[0] if len(aux) == 1 and isinstance(aux[0], tuple) and not _same(aux[0], model) else aux:
        if part is None:
            continue
        if _same(part, model):
            new = part
        elif isinstance(part, dict) and all(
            isinstance(k, str) and not len(getattr(v, "shape", ())) for k, v in part.items()
        ):
            metrics = part
        else:
            raise fx.error(
                "FX1106",
                f"with the loss comes a {type(part).__name__}, which is neither the model nor a dict of scalars",
            )
    return value, new, metrics


def _same(x: Any, model: Any) -> bool:
    return type(x) is type(model) and bool(fx.tree.flatten(x)[1] == fx.tree.flatten(model)[1])


class _Tests:
    """What is evaluated on the validation data after each epoch."""

    def __init__(self, loss: Callable[..., Any], measure: Callable[..., Any] | None, data: Any, symbolic: bool) -> None:
        def both(model: Any, batch: Any) -> Any:
            out = {"validation loss": checked(loss(model, *arguments(batch)), model)[0]}
            if measure is not None:
                found = measure(model, *arguments(batch))
                named = found if isinstance(found, dict) else {getattr(measure, "__name__", "measure"): found}
                out.update({f"validation {k}": v for k, v in named.items()})
            return out

        self.data = data
        self.program = Program(both, name="validate", symbolic=symbolic)

    def __call__(self, model: Any) -> dict[str, float]:
        if self.data is None:
            return {}
        return means(self.program, model, self.data)


__all__ = ["Run", "fit"]
