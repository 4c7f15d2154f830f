"""`fx.train`: a training loop with callbacks, evaluation, and saved models.

run = fx.train.fit(model, loss, fx.data.DataLoader((x, y), 64, shuffle=0), fx.optim.Adam(1e-3), epochs=10)
fx.train.save("model.safetensors", run.model)
model = fx.train.load("model.safetensors", like=run.model)
"""

from fluxir.train.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Monitor,
    Progress,
    ReduceOnPlateau,
    StopOnNaN,
    throttle,
)
from fluxir.train.files import load, load_with_meta, save
from fluxir.train.fit import Run, fit
from fluxir.train.program import evaluate

__all__ = [
    "Callback", "Checkpoint", "EarlyStopping", "Monitor", "Progress", "ReduceOnPlateau", "Run", "StopOnNaN", "evaluate", "fit",
    "load", "load_with_meta", "save", "throttle",
]  # fmt: skip
