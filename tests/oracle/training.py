"""Loss curves of the training examples in PyTorch: `python -m tests.oracle.training` (needs the extra `oracle`).

Each example is trained for 20 steps from the same weights and on the same batches by FluxIR (`ours`) and by networks written
in PyTorch's own layers (`theirs`), in f32 and in f64. `training.npz` keeps PyTorch's losses and the norm of each of its
parameters after the last step.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fluxir as fx

STEPS = 20
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FIXTURE = Path(__file__).resolve().parent / "training.npz"
MODELS = {"char_lstm": "CharLSTM", "gpt": "GPT", "vae": "VAE"}
Curve = tuple[list[float], dict[str, float]]


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def beginning(ex: ModuleType, name: str, dtype: str) -> tuple[Any, Iterator[Any]]:
    """A model with drawn weights, and the arguments of its steps; floats in `dtype`, all of them exact in f32.

    Raw words of PCG64, whose stream numpy guarantees, stand for the example's own random numbers, so that the fixture fits
    every machine and version.
    """
    bits = np.random.PCG64(7)

    def weight(x: Any) -> Any:
        unit = (bits.random_raw(x.size) >> np.uint64(40)).astype(np.float64).reshape(x.shape) * 2.0**-23 - 1
        # Matrices are centred and about as large as usual; scales and biases lie around the 1 and 0 that they begin as.
        return fx.astype(np.asarray(x) * (x.ndim == 1) + unit / 2 ** (x.ndim + 2), dtype)

    def rows(below: int) -> Any:
        return (bits.random_raw(ex.BATCH) % np.uint64(below)).astype(np.int64)

    def arguments() -> Iterator[Any]:
        for count in itertools.count():
            if name == "vae":
                x = ex.images("train")
                yield fx.astype(x[rows(len(x))], dtype), fx.random.key(count)
            else:
                places = rows(len(ex.TRAIN) - ex.LENGTH)
                yield (ex.TRAIN[places[:, None] + np.arange(ex.LENGTH + 1)].astype(np.int64),)

    return fx.tree.map(weight, getattr(ex, MODELS[name])(fx.random.key(0))), arguments()


def norms(model: Any) -> dict[str, float]:
    leaves, structure = fx.tree.flatten(model)
    paths = [fx.tree.path_text(p) for p in structure.paths()]
    return {p: float(np.linalg.norm(np.asarray(x, np.float64))) for p, x in zip(paths, leaves, strict=True)}


def ours(name: str, dtype: str) -> Curve:
    """The losses of the first steps, and the norms of the weights after them."""
    ex = example(name)
    model, arguments = beginning(ex, name, dtype)
    memory = ex.optimiser.init(model)
    losses = []
    for _ in range(STEPS):
        model, memory, value = ex.step(model, memory, *next(arguments))
        losses.append(float(value))
    return losses, norms(model)


# ---- PyTorch --------------------------------------------------------------------------------------------------------------
#
# Each function takes the untrained model and gives the parameters by the paths that they have in it, the loss as a function of
# the arguments of a step, and the optimiser. Dense layers hold the transpose here: [out, in].


def _lstm(torch: Any, ex: Any, model: Any, take: Callable[..., Any]) -> Any:
    nn, dtype = torch.nn, take(model.output.bias).dtype
    embedding = nn.Embedding(ex.SYMBOLS, ex.WIDTH, dtype=dtype)
    lstm = nn.LSTM(ex.WIDTH, ex.HIDDEN, batch_first=True, dtype=dtype)
    output = nn.Linear(ex.HIDDEN, ex.SYMBOLS, dtype=dtype)
    cell = model.lstm.cells[0]
    lstm.bias_hh_l0.data.zero_()
    lstm.bias_hh_l0.requires_grad_(False)  # PyTorch has two biases that are added, FluxIR one
    given = {
        "embedding.weight": (embedding.weight, model.embedding.weight),
        "lstm.cells.0.weight": (lstm.weight_ih_l0, cell.weight.T),
        "lstm.cells.0.recurrent": (lstm.weight_hh_l0, cell.recurrent.T),
        "lstm.cells.0.bias": (lstm.bias_ih_l0, cell.bias),
        "output.weight": (output.weight, model.output.weight.T),
        "output.bias": (output.bias, model.output.bias),
    }
    parameters = _loaded(given, take)

    def loss(text: Any) -> Any:
        h, _ = lstm(embedding(text[:, :-1]))
        return nn.functional.cross_entropy(output(h).flatten(0, 1), text[:, 1:].flatten()) / math.log(2)

    def clip() -> None:
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)

    return parameters, loss, torch.optim.Adam(parameters.values(), 5e-3), clip


def _gpt(torch: Any, ex: Any, model: Any, take: Callable[..., Any]) -> Any:
    nn = torch.nn
    leaves, structure = fx.tree.flatten(model)
    parameters = {fx.tree.path_text(p): nn.Parameter(take(x)) for p, x in zip(structure.paths(), leaves, strict=True)}

    def normal(path: str, x: Any) -> Any:
        return nn.functional.layer_norm(x, (ex.WIDTH,), parameters[f"{path}.scale"], parameters[f"{path}.bias"])

    def loss(text: Any) -> Any:
        w = parameters
        b, t = text.shape[0], text.shape[1] - 1
        x = nn.functional.embedding(text[:, :-1], w["symbols.weight"]) + w["places.weight"][:t]
        for i in range(ex.LAYERS):
            at = f"blocks.layers.{i}"
            h = normal(f"{at}.norm1", x)
            q, k, v = (
                (h @ w[f"{at}.attention.{n}.weight"]).view(b, t, ex.HEADS, -1).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + a.transpose(1, 2).reshape(b, t, -1) @ w[f"{at}.attention.output.weight"]
            up, down = (f"{at}.perceptron.layers.{j}" for j in range(2))
            h = normal(f"{at}.norm2", x) @ w[f"{up}.weight"] + w[f"{up}.bias"]
            x = x + nn.functional.gelu(h, approximate="tanh") @ w[f"{down}.weight"] + w[f"{down}.bias"]
        scores = normal("norm", x) @ w["symbols.weight"].T
        return nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()) / math.log(2)

    optimiser = torch.optim.AdamW(parameters.values(), 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    return parameters, loss, optimiser, lambda: None


def _vae(torch: Any, ex: Any, model: Any, take: Callable[..., Any]) -> Any:
    nn, dtype = torch.nn, take(model.encoder[0].bias).dtype
    given, made = {}, []
    for part in ("encoder", "decoder"):
        for i in range(2):
            dense = getattr(model, part)[i]
            layer = nn.Linear(*dense.weight.shape, dtype=dtype)
            given[f"{part}.layers.{i}.weight"] = layer.weight, dense.weight.T
            given[f"{part}.layers.{i}.bias"] = layer.bias, dense.bias
            made.append(layer)
    parameters = _loaded(given, take)
    encoder = nn.Sequential(made[0], nn.Tanh(), made[1])
    decoder = nn.Sequential(made[2], nn.Tanh(), made[3])
    Normal = torch.distributions.Normal

    def loss(x: Any, key: Any) -> Any:
        noise = take(np.asarray(fx.random.normal(key.numpy(), (len(x), ex.LATENT))).astype(x.numpy().dtype))
        mean, logvar = encoder(x).chunk(2, dim=-1)
        spread = torch.exp(0.5 * logvar)
        scores = decoder(mean + spread * noise)
        missed = nn.functional.binary_cross_entropy_with_logits(scores, x, reduction="sum")
        standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return (missed + torch.distributions.kl_divergence(Normal(mean, spread), standard).sum()) / len(x)

    return parameters, loss, torch.optim.Adam(parameters.values(), 3e-3), lambda: None


def _loaded(given: dict[str, Any], take: Callable[..., Any]) -> dict[str, Any]:
    for parameter, value in given.values():
        parameter.data.copy_(take(value))
    return {path: parameter for path, (parameter, _) in given.items()}


def theirs(name: str, dtype: str) -> Curve:
    """As `ours`, by PyTorch."""
    import torch

    torch.set_num_threads(1)

    def take(x: Any) -> Any:
        return torch.from_numpy(np.array(x, order="C"))  # a copy in memory of its own

    ex = example(name)
    model, arguments = beginning(ex, name, dtype)
    parameters, loss, optimiser, clip = {"char_lstm": _lstm, "gpt": _gpt, "vae": _vae}[name](torch, ex, model, take)
    assert set(parameters) == set(norms(model))
    losses = []
    for _ in range(STEPS):
        value = loss(*[take(a) for a in next(arguments)])
        optimiser.zero_grad()
        value.backward()
        clip()
        optimiser.step()
        losses.append(value.item())
    return losses, {path: float(p.detach().double().norm()) for path, p in parameters.items()}


def main() -> None:
    arrays = {}
    for name in MODELS:
        for dtype in ("f32", "f64"):
            losses, after = theirs(name, dtype)
            arrays[f"{name}.{dtype}.losses"] = np.array(losses)
            arrays[f"{name}.{dtype}.norms"] = np.array([after[path] for path in sorted(after)])
            print(f"{name} {dtype}: {losses[0]:.4f} to {losses[-1]:.4f}")
    np.savez_compressed(FIXTURE, **arrays)
    print(f"{FIXTURE.name}: {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
