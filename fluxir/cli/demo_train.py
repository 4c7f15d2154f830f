"""The first half of the verb ``demo``: the digits network trained from scratch, by the one definition of
``examples/train_digits_fx.py``.

Invariants: a fixed number of epochs from a fixed seed, so that two runs on one machine give the same weights; the test
half is not looked at. Nothing beside the folder that was named is written.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import error
from .common import Output

__all__ = ["EPOCHS", "example", "train"]

EPOCHS = 120
"""As many as take some seconds on two cores; with a quarter of them about 96 % of the test half are read rightly."""


def example(name: str) -> Path:
    """An example file: beside the package in a checkout, inside it when installed. FX0803 where it is missing."""
    package = Path(__file__).resolve().parent.parent
    for place in (package.parent / "examples", package / "examples"):
        if (place / name).is_file():
            return place / name
    raise error(
        "FX0803", f"the example {name} is not installed", help="reinstall fluxir, or run the demo in a checkout"
    )


def train(folder: Path, epochs: int, output: Output) -> tuple[Path, dict[str, Any]]:
    """Train, and write the model file with its weights beside it into ``folder``; returns the model file, and what the
    training did as JSON-ready data."""
    from ..runtime.safetensors import save_safetensors

    source = example("digits.py")
    if folder.resolve() == source.parent:
        raise error("FX0804", f"{folder} holds the example itself, whose weights would be lost",
                    help="name another folder with -o")  # fmt: skip
    recipe = _load(example("train_digits_fx.py"))
    folder.mkdir(parents=True, exist_ok=True)

    def show(run: Any) -> None:
        output.progress(f"training: epoch {run.epoch} of {epochs}, loss {run.loss:.3f}")

    output.progress("compiling the training step")
    started = time.perf_counter()
    run = recipe.train(epochs=epochs, show=False, callbacks=[show])
    seconds = time.perf_counter() - started
    losses = [row["loss"] for row in run.history]
    note = {
        "model": source.name,
        "written by": "fluxir demo",
        "epochs": str(epochs),
        "seed": str(recipe.SEED),
        "training loss": f"{losses[-1]:.4f}",
    }
    save_safetensors(folder / "digits.safetensors", recipe.weights(run.model), note)
    model = folder / "digits.py"
    model.write_text(source.read_text())
    return model.resolve(), {
        "epochs": epochs,
        "steps": run.step,
        "batch": recipe.BATCH,
        "seed": recipe.SEED,
        "seconds": seconds,
        "loss": losses,
    }


def _load(path: Path) -> ModuleType:
    """An example as a module. It is in `sys.modules` while its functions are staged, which reads their source."""
    name = f"fluxir_demo_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
