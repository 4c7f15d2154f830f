"""Owns the text that ships with FluxIR: a play as numbered characters, and its fixed split.

Invariants: pure numpy, no network; the same numbers on every machine. The end of the play tests what was learnt from the
rest: a model has not seen those scenes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRAINING_CHARACTERS", "decode_text", "load_text", "text_path"]

TRAINING_CHARACTERS = 113_099
"""How many of the 125,179 characters, from the start of the file, train; the other 12,080, the last two scenes, test."""


def text_path() -> Path:
    """Where the bundled text lies: ASCII, with tabs and newlines."""
    return Path(__file__).resolve().parent / "as_you_like_it.txt"


def load_text() -> tuple[str, NDArray[np.uint8], NDArray[np.uint8]]:
    """The bundled text: `(alphabet, train, test)`.

    `alphabet` has the 68 characters that occur, sorted; `train` u8[113099] and `test` u8[12080] are indices into it.
    """
    codes = np.frombuffer(text_path().read_bytes(), np.uint8)
    used, indices = np.unique(codes, return_inverse=True)
    numbers = indices.astype(np.uint8)
    return bytes(used).decode("ascii"), numbers[:TRAINING_CHARACTERS], numbers[TRAINING_CHARACTERS:]


def decode_text(numbers: NDArray[np.integer], alphabet: str) -> str:
    """The characters that the numbers stand for."""
    return "".join(alphabet[int(i)] for i in numbers)
