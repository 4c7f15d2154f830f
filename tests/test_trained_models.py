"""Trained models of PyPI packages (`make models`): every one compiles and agrees with what onnxruntime answered, which is kept in
tests/fixtures/trained.npz (written by tools/trained_fixture.py); the examples do their whole job. Skipped where they are not there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from bench.models import disagreement, samples
from bench.zoo import MODELS, find

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "trained.npz"
QUANTISED = 0.3  # of results after many layers that are rounded to 8 bits


@pytest.mark.deep
@pytest.mark.parametrize("name", [m.name for m in MODELS])
def test_agrees(name: str) -> None:
    trained = next(m for m in MODELS if m.name == name)
    file = find(trained.file)
    if file is None:
        pytest.skip("not there: make models")
    model = fx.onnx.load(file)
    with np.load(FIXTURE) as kept:
        for size, given in enumerate(samples(trained)):
            found = model(*[given[n] for n in model.inputs])
            found = found if isinstance(found, tuple) else (found,)
            # of each result a thousand elements, and where the largest of each row is
            for n, y in enumerate(found):
                key = f"{name}/{size}/{n}"
                flat, want = np.asarray(y, np.float64).reshape(-1), kept[key]
                picked = flat[np.linspace(0, flat.size - 1, want.size).astype(int)]
                scale = max(float(kept[key + "/largest"]), 1e-2)
                assert np.abs(picked - want).max() <= (QUANTISED if trained.quantised else trained.close) * scale, key


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def needs(file: str) -> None:
    if find(file) is None:
        pytest.skip("not there: make models")


def test_detect_file_type() -> None:
    needs("magika/models/standard_v3_3/model.onnx")
    detector = example("detect_file_type").Detector()
    files = {
        "README.md": "markdown", "pyproject.toml": "toml", "Makefile": "makefile", "fluxir/driver.py": "python",
        "tests/test_docs.py": "python",
    }  # fmt: skip
    found = detector([(ROOT / name).read_bytes() for name in files])
    assert [label for label, _ in found] == list(files.values())
    assert min(score for _, score in found) > 0.75
    assert [label for label, _ in detector([b"", b"hi", b"\x00\xff"])] == ["empty", "txt", "unknown"]


def test_ocr() -> None:
    needs("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
    pytest.importorskip("PIL")
    ocr, receipt = example("ocr"), example("make_receipt")
    lines = ocr.Reader()(ocr.picture(ROOT / "examples" / "receipt.png"))
    # the network was trained on text without spaces, and takes a capital I for an l

    def plain(text: str) -> str:
        return text.replace(" ", "").replace("I", "l").lower()

    assert [plain(line.text) for line in lines] == [plain(text) for text in receipt.LINES]
    assert min(line.score for line in lines) > 0.9


def test_voice_activity() -> None:
    needs("silero_vad/data/silero_vad.onnx")
    voice = example("voice_activity")
    speech = voice.Listener()(voice.recording())
    seconds = np.arange(len(speech)) * voice.STEP / voice.RATE
    silent = (seconds < 0.9) | (seconds > 5.8)
    spoken = ((seconds > 1.3) & (seconds < 2.8)) | ((seconds > 4.3) & (seconds < 5.2))
    assert speech[silent].max() < 0.35 and np.median(speech[spoken]) > 0.5
    assert len(voice.spans(speech)) >= 2


def test_disagreement_finds_what_differs() -> None:
    a = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert disagreement(a, [a]) == (0.0, 0.0)
    most, moved = disagreement(a[:, ::-1], [a])
    assert most == 1.0 and moved == 1.0
