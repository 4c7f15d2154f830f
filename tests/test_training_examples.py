"""The training examples: loss curves are PyTorch's, losses fall as far as stated, what they made is what it should be.

Curves in f64 agree to rounding. The noise of the autoencoder is drawn in f32, by numpy for PyTorch and natively here, which may
differ in the last place.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.data import TRAINING_CHARACTERS, decode_text, load_text, text_path
from fluxir.errors import FluxError
from tests.oracle.training import FIXTURE, MODELS, beginning, example, ours

TOLERANCE = {"f32": 1e-5, "f64": 1e-12}
VAE_TOLERANCE = {"f32": 1e-5, "f64": 1e-7}


@pytest.fixture(scope="module")
def lstm() -> ModuleType:
    return example("char_lstm")


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    return example("gpt")


@pytest.fixture(scope="module")
def vae() -> ModuleType:
    return example("vae")


@pytest.fixture(scope="module")
def equilibrium() -> ModuleType:
    return example("equilibrium")


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", list(MODELS))
def test_twenty_steps_are_those_of_pytorch(name: str, dtype: str) -> None:
    losses, norms = ours(name, dtype)
    rtol = (VAE_TOLERANCE if name == "vae" else TOLERANCE)[dtype]
    with np.load(FIXTURE) as archive:
        want, after = archive[f"{name}.{dtype}.losses"], archive[f"{name}.{dtype}.norms"]
    assert len(losses) == 20 and losses[-1] < 0.85 * losses[0]
    np.testing.assert_allclose(losses, want, rtol=rtol)
    np.testing.assert_allclose([norms[path] for path in sorted(norms)], after, rtol=rtol)


def test_the_text_is_what_its_note_says() -> None:
    alphabet, train, test = load_text()
    assert len(alphabet) == 68 and sorted(alphabet) == list(alphabet) and alphabet.isascii()
    assert (
        train.dtype == test.dtype == np.uint8
        and len(train) == TRAINING_CHARACTERS
        and len(train) + len(test) == 125_179
    )
    whole = decode_text(np.concatenate([train, test]), alphabet)
    assert whole.encode() == text_path().read_bytes() and "All the world's a stage" in whole
    assert decode_text(test, alphabet).startswith("ACT V\n\n\n\nSCENE III")


@pytest.mark.parametrize(("name", "steps", "bits"), [("char_lstm", 120, 3.1), ("gpt", 250, 3.4)])
def test_language_models_learn(name: str, steps: int, bits: float, request: pytest.FixtureRequest) -> None:
    """Each character by its frequency takes 4.8 bits on the test scenes, by its frequency after the one before 3.5."""
    ex = request.getfixturevalue({"char_lstm": "lstm"}.get(name, name))
    lines: list[str] = []
    model = ex.train(steps, lines.append)
    assert lines[0].startswith("step    0: 6.") and lines[-1].startswith(f"step {steps - 1:4}: ")
    assert ex.held_out(model) < bits
    prompt = ex.TEST[: ex.LENGTH].astype(np.int64)
    written = [ex.write(model, prompt, fx.random.key(k), count=300) for k in (1, 1, 2)]
    np.testing.assert_array_equal(written[0], written[1])
    assert (written[0] != written[2]).any() and written[0].shape == (300,)
    assert (written[0] >= 0).all() and (written[0] < ex.SYMBOLS).all()
    # What it writes is text of a kind: mostly letters and spaces, words of a usual length.
    text = decode_text(written[0], ex.ALPHABET)
    assert sum(c.isalpha() or c.isspace() for c in text) > 0.85 * len(text)
    assert 2.5 < np.mean([len(w) for w in text.split()]) < 8


def test_writing_reads_the_whole_prompt(lstm: ModuleType) -> None:
    """The state after the prompt is that of reading it character by character."""
    model = lstm.CharLSTM(fx.random.key(5))
    text = lstm.TEST[:20].astype(np.int64)[None]
    whole, state = fx.jit(lambda m, x: m(x))(model, text)
    now = None
    for i in range(20):
        scores, now = model(text[:, i : i + 1], now)
        np.testing.assert_allclose(scores[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)
    for a, b in zip(fx.tree.leaves(now), fx.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_gpt_does_not_see_what_follows(gpt: ModuleType) -> None:
    model, run = gpt.GPT(fx.random.key(5)), fx.jit(lambda m, x: m(x))
    text = gpt.TEST[: gpt.LENGTH].astype(np.int64)[None]
    changed = text.copy()
    changed[:, 30:] = (changed[:, 30:] + 7) % gpt.SYMBOLS
    a, b = run(model, text), run(model, changed)
    np.testing.assert_allclose(a[:, :30], b[:, :30], rtol=1e-5, atol=1e-6)
    assert (np.abs(a[:, 30:] - b[:, 30:]).max(-1) > 1e-3).all()


def test_the_autoencoder_learns(vae: ModuleType) -> None:
    untrained = vae.held_out(vae.VAE(fx.random.key(0)))
    lines: list[str] = []
    model = vae.train(500, lines.append)
    # The best that knows nothing of the image, each pixel by its frequency, needs more.
    x, ink = vae.images("test"), vae.images("train").mean(0).clip(1e-3, 1 - 1e-3)
    constant = -(x * np.log(ink) + (1 - x) * np.log(1 - ink)).sum(1).mean()
    assert vae.held_out(model) < 26 < constant < untrained
    # Same key, same pictures; they look like digits: nearer to one of the training half than a mean image is.
    pictures = vae.dream(model, fx.random.key(3), count=64)
    np.testing.assert_array_equal(pictures, vae.dream(model, fx.random.key(3), count=64))
    train = vae.images("train")

    def distance(y: Any) -> float:
        return float(np.mean([np.min(np.sum((train - v) ** 2, axis=1)) for v in y.reshape(len(y), -1)]))

    assert pictures.shape == (64, 8, 8) and pictures.std(0).mean() > 0.1
    assert distance(pictures) < distance(train.mean(0)[None])


def test_the_equilibrium_model_learns(equilibrium: ModuleType) -> None:
    lines: list[str] = []
    model = equilibrium.train(6, lines.append)
    assert equilibrium.accuracy(model) > 0.9 and len(lines) == 6


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_implicit_differentiation_is_unrolled_differentiation(
    equilibrium: ModuleType, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """In f64, with the equilibrium found to rounding; `scale` makes the layer contract as slowly as it may."""
    monkeypatch.setattr(equilibrium, "TOLERANCE", 1e-15)
    monkeypatch.setattr(equilibrium, "MOST", 2000)
    model = fx.nn.cast(equilibrium.Equilibrium(fx.random.key(2)), "f64")
    model = model.replace(inner=model.inner * scale)
    x, label = (a[:16] for a in equilibrium.half("train"))
    (implicit, memory), (unrolled, more) = equilibrium.gradients(model, x.astype(np.float64), label, 1000)
    for a, b in zip(fx.tree.leaves(implicit), fx.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert np.abs(implicit.inner).max() > 1e-4
    assert memory < more / 50  # nothing of the rounds is kept
    direction = fx.tree.map(np.ones_like, model)
    slope = fx.jit(lambda m, d: fx.jvp(lambda m: equilibrium.loss(m, x, label), (m,), (d,))[1])(model, direction)
    along = sum(np.sum(g) for g in fx.tree.leaves(implicit))
    np.testing.assert_allclose(slope, along, rtol=1e-9)  # the rule for forward mode solves another equation


def test_the_equilibrium_is_one(equilibrium: ModuleType) -> None:
    """The result of the compiled loop is a fixed point, from any first guess; the guess has no gradient."""
    rng = np.random.default_rng(4)
    w, y = rng.normal(size=(6, 6)) * 0.1, rng.normal(size=(3, 6))
    find = fx.jit(lambda inputs, z: equilibrium.equilibrium(equilibrium.layer, inputs, z))
    for guess in (np.zeros((3, 6)), rng.normal(size=(3, 6))):
        z = find((w, y), guess)
        np.testing.assert_allclose(z, np.tanh(z @ w + y), atol=2e-6)
    total = fx.grad(lambda z: fx.sum(equilibrium.equilibrium(equilibrium.layer, (w, y), z)))(guess)
    np.testing.assert_array_equal(total, np.zeros((3, 6)))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("char_lstm", [r"step    2: \d\.\d{3} bits a character", r"not seen: \d\.\d{3} bits"]),
        ("gpt", [r"step    2: \d\.\d{3} bits a character", r"not seen: \d\.\d{3} bits"]),
        ("vae", [r"step    2: \d\d\.\d\d nats an image", r"not seen: \d\d\.\d\d nats", r"\n[ .:=+*%#@-]{80,}\n"]),
        ("equilibrium", [r"epoch  2: loss \d\.\d{4}", r"not seen: \d\d\.\d% right", r"gradient: \de-0\d from that"]),
    ],
)
def test_examples_are_programs(
    name: str,
    lines: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ex = request.getfixturevalue({"char_lstm": "lstm"}.get(name, name))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "3"])
    ex.main()
    said = capsys.readouterr().out
    for line in lines:
        assert re.search(line, said), said


@pytest.mark.parametrize("name", list(MODELS))
def test_a_step_updates_in_place(name: str) -> None:
    """Forward, backward and update are one program, and every result but the loss takes an argument's memory."""
    ex = example(name)
    model, arguments = beginning(ex, name, "f32")
    memory = ex.optimiser.init(model)
    lowered = ex.step.lower(model, memory, *next(arguments))
    donated = dict(lowered.module.entry.attrs["donated"])
    count = len(fx.tree.leaves((model, memory)))
    assert set(donated) == set(range(count)) and len(lowered.module.entry.outs) == count + 1
    before = fx.tree.map(np.array, model)
    after = ex.step(model, memory, *next(arguments))[0]
    with pytest.raises(FluxError, match="FX0614"):
        ex.step(model, memory, *next(arguments))
    assert all((a != b).any() for a, b in zip(fx.tree.leaves(before), fx.tree.leaves(after), strict=True))
