"""Where does somebody speak? Silero's network listens to 32 ms at a time and keeps a state from one to the next.

    python examples/voice_activity.py [FILE.wav]    (16 kHz, mono, 16 bits; default: made-up vowels between silence and noise)

The loop over the recording is one program: the network is called inside a `fx.scan`, so that a recording of any length is one
call. (`make models`, or `pip install --no-deps silero-vad`; only the model of the package is used.)
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np

import fluxir as fx

ROOT = Path(__file__).resolve().parent.parent
RATE, STEP, BEFORE = 16000, 512, 64  # samples: of a second, of a step, and of the step before that each sees as well
SPEECH, SILENCE = 0.5, 0.35  # probabilities at which speech begins and ends


def folder(package: str) -> Path:
    """Where a package lies, whether installed or only downloaded."""
    for place in (ROOT / ".venv" / "models", *map(Path, sys.path)):
        if (place / package).is_dir():
            return place / package
    raise SystemExit(f"the package {package} is not there: make models, or pip install --no-deps silero-vad")


class Listener:
    """`listener(samples)` gives the probability of speech in each step of a recording (f32, -1 .. 1)."""

    def __init__(self) -> None:
        network = fx.onnx.load(folder("silero_vad") / "data" / "silero_vad.onnx")
        rate = np.array(RATE)  # a constant of the program: the network has a branch for each rate

        @fx.jit
        def listen(steps):
            def step(state, samples):
                speech, state = network(samples[None], state, rate)
                return state, speech[0, 0]

            return fx.scan(step, fx.zeros((2, 1, 128)), steps)[1]

        self.listen = listen

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        count = -(-len(samples) // STEP)
        padded = np.zeros(BEFORE + count * STEP, np.float32)
        padded[BEFORE : BEFORE + len(samples)] = samples
        places = np.arange(count)[:, None] * STEP + np.arange(BEFORE + STEP)
        return self.listen(padded[places])


def spans(speech: np.ndarray) -> list[tuple[float, float]]:
    """Seconds from and to which there is speech: it begins above one probability and ends below another."""
    out, start = [], None
    for n, p in enumerate([*speech, 0.0]):
        if start is None and p >= SPEECH:
            start = n
        elif start is not None and p < SILENCE:
            out.append((start * STEP / RATE, n * STEP / RATE))
            start = None
    return out


def vowels(seconds: float, seed: int) -> np.ndarray:
    """Something like a voice: pulses of a wandering pitch through the resonances of vowels that change, syllable by syllable."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    t = np.arange(n) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * t) + 12 * np.sin(2 * np.pi * 2.3 * t + 1)
    phase = np.cumsum(pitch) / RATE
    source = np.diff(np.floor(phase), prepend=0) + 0.01 * rng.standard_normal(n)
    formants = [(730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480), (300, 870, 2240)]
    out, syllable = np.zeros(n), int(0.18 * RATE)
    for start in range(0, n, syllable):
        part = source[start : start + syllable]
        y = part.copy()
        for f in formants[int(rng.integers(5))]:  # two poles each
            r, w = np.exp(-np.pi * 90 / RATE), 2 * np.pi * f / RATE
            a, b, c = (1 - r) * 2, 2 * r * np.cos(w), -r * r
            z = np.zeros(len(y) + 2)
            for i, v in enumerate(y):
                z[i + 2] = a * v + b * z[i + 1] + c * z[i]
            y = z[2:]
        out[start : start + len(y)] = y * np.sin(np.pi * np.arange(len(y)) / len(y)) ** 0.5
    return (0.6 * out / np.abs(out).max()).astype(np.float32)


def recording() -> np.ndarray:
    """A second of silence, two of voice, one of noise, one and a half of voice, one of silence."""
    rng = np.random.default_rng(1)
    noise = 0.01 * rng.standard_normal(RATE)
    parts = [np.zeros(RATE), vowels(2.0, seed=2), noise, vowels(1.5, seed=3), np.zeros(RATE)]
    return np.concatenate(parts).astype(np.float32)


def from_file(path: str) -> np.ndarray:
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path}: the recording must be 16 kHz, mono, 16 bits")
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


if __name__ == "__main__":
    samples = from_file(sys.argv[1]) if len(sys.argv) > 1 else recording()
    speech = Listener()(samples)
    for start, end in spans(speech):
        print(f"speech from {start:.2f} s to {end:.2f} s")
    print("".join(" .:-=+*#%@"[min(9, int(p * 10))] for p in speech))
