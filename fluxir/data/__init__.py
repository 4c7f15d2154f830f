"""Owns the data that ships with FluxIR: the UCI optical digits, and their fixed split into two halves; `text.py` has a play.

Invariants: pure numpy, no network, no pickle; the same arrays in the same order on every machine. The first half of the
file trains and the second half tests: the file lists its writers one after the other, so a model is tested on
handwriting of people it has hardly seen, which is harder (and more honest) than a shuffled split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluxir.data.loader import DataLoader
from fluxir.data.split import kfold, one_cold, one_hot, split
from fluxir.data.text import TRAINING_CHARACTERS, decode_text, load_text, text_path

__all__ = [
    "DataLoader",
    "TRAINING_CHARACTERS",
    "TRAINING_IMAGES",
    "decode_text",
    "digits_path",
    "kfold",
    "load_digits",
    "load_text",
    "one_cold",
    "one_hot",
    "scale_digits",
    "split",
    "text_path",
]

TRAINING_IMAGES = 898
"""How many of the 1,797 images, from the start of the file, are the training half; the other 899 are the test half."""

_WHITE = 16
"""The largest pixel value: each pixel counts the dark dots in a 4x4 cell of the original 32x32 bitmap."""


def digits_path() -> Path:
    """Where the bundled archive lies: `images` u8[1797,8,8] with values 0 to 16, and `labels` u8[1797] from 0 to 9."""
    return Path(__file__).resolve().parent / "digits.npz"


def load_digits() -> dict[str, NDArray[np.uint8]]:
    """The bundled digits, split once and for all.

    Returns a dict of four uint8 arrays: `train_images` [898,8,8], `train_labels` [898], `test_images` [899,8,8] and
    `test_labels` [899]. Pixels run from 0 (paper) to 16 (ink); `scale_digits` makes them what the models take.
    """
    with np.load(digits_path(), allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    return {
        "train_images": images[:TRAINING_IMAGES],
        "train_labels": labels[:TRAINING_IMAGES],
        "test_images": images[TRAINING_IMAGES:],
        "test_labels": labels[TRAINING_IMAGES:],
    }


def scale_digits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels 0 to 16 of any shape as float32 from 0 to 1 (exact: a division by 16)."""
    return np.asarray(images, dtype=np.float32) / np.float32(_WHITE)
