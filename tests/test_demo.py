"""`fluxir demo`: it trains the network of the example, compiles it with those weights, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.cli import main
from fluxir.cli.common import Output
from fluxir.cli.demo_train import EPOCHS, example, train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = 12


def demo(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["demo", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_small_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenth of the epochs: the loss falls, most digits are read, and all that is written has the trained weights."""
    folder = tmp_path / "out"
    r = demo(capsys, "-o", str(folder), "--epochs", str(SMALL))
    t = r["training"]
    assert (t["epochs"], t["steps"], len(t["loss"])) == (SMALL, SMALL * 15, SMALL)
    assert t["loss"][-1] < t["loss"][0] / 2 and r["accuracy"] > 0.85
    assert r["correct"] == round(r["accuracy"] * r["images"]) and r["images"] == 899
    assert r["model"] == str(folder / "digits.py") and r["worst_difference"] < 1e-4
    # The weights are the trained ones: the file, the artifact and what was measured agree.
    header = fx.read_safetensors_header(folder / "digits.safetensors")
    assert header.metadata["epochs"] == str(SMALL) and header.metadata["written by"] == "fluxir demo"
    digits = fx.data.load_digits()
    images = fx.data.scale_digits(digits["test_images"])
    logits = fx.load(folder / "digits.fxb")(images)
    assert int((logits.argmax(1) == digits["test_labels"]).sum()) == r["correct"]
    for target in ("sm_80", "sm_90"):
        assert ".entry" in (folder / f"digits-{target}.ptx").read_text()
    page = (folder / "report.html").read_text()
    assert '<section id="curve"><h2>Training</h2>' in page and page.count("<polyline") == 1
    points = page.partition('<polyline points="')[2].partition('"')[0].split()
    heights = [float(p.split(",")[1]) for p in points]
    assert len(points) == SMALL and heights[-1] > heights[0]  # y grows downwards
    # The PTX was run on the virtual GPU, and the page says what that counted.
    v = r["virtual_gpu"]
    assert v["worst_difference"] < 1e-4 and v["thread_instructions"] > 1e6 and len(v["kernels"]) == r["launches"]
    assert '<section id="profile">' in page and "H100 SXM" in page and v["kernels"][0]["kernel"] in page
    # What it printed for people.
    assert main(["demo", "-o", str(folder), "--epochs", "2"]) == 0
    out, err = capsys.readouterr()
    assert "2 epochs, 30 steps" in out and "training loss" in out and "the weights, every stage" in out and not err
    assert "run on vgpu:sm_80" in out


def test_the_weights_mean_the_same_in_both_definitions(tmp_path: Path) -> None:
    """The network that is trained and the one that is compiled are one function of the weights, bit for bit in twice."""
    losses = []
    for name in ("a", "b"):
        model, t = train(tmp_path / name, 2, Output(False))
        losses.append(t["loss"])
        assert model == tmp_path / name / "digits.py" and model.read_text() == (EXAMPLES / "digits.py").read_text()
    first, second = [(tmp_path / n / "digits.safetensors").read_bytes() for n in "ab"]
    assert first == second and losses[0] == losses[1]
    import fluxir_demo_train_digits_fx as recipe  # type: ignore[import-not-found]  # loaded by `train`

    w = fx.load_safetensors(tmp_path / "a" / "digits.safetensors")
    net = recipe.network(fx.random.key(3))
    leaves, structure = fx.tree.flatten(net)
    net = structure.unflatten([w[k] for k in recipe.weights(net)])
    x, _ = recipe.half("test")
    x = x[:32]
    from fluxir.frontend.loader import load_model

    file = load_model(str(tmp_path / "a" / "digits.py"))
    assert [k.shape for k in leaves] == [w[k].shape for k in recipe.weights(net)]
    from fluxir.driver import Lowered

    traced = file.entry(None).trace({})
    got = Lowered(traced.module, traced.in_tree, traced.out_tree).compile("cpu").program(x)
    want = fx.jit(lambda m, x: m(fx.expand_dims(x, 1)))(net, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_pretrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = demo(capsys, "-o", str(tmp_path), "--pretrained")
    assert r["training"] is None and r["correct"] == 890 and r["model"] == str(EXAMPLES / "digits.py")
    assert not (tmp_path / "digits.safetensors").exists() and "<polyline" not in (tmp_path / "report.html").read_text()


def test_the_examples_own_weights_are_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    before = example("digits.safetensors").read_bytes()
    assert main(["demo", "-o", str(EXAMPLES), "--epochs", "1"]) == 74
    assert "FX0804" in capsys.readouterr().err
    assert example("digits.safetensors").read_bytes() == before


@pytest.mark.deep
def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = demo(capsys, "-o", str(tmp_path))
    assert r["training"]["epochs"] == EPOCHS and r["accuracy"] >= 0.985
