"""The bundled digits and the bundled weights belong together: plain numpy gets PyTorch's logits and the stated accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxir.data import load_digits, scale_digits
from fluxir.runtime.safetensors import load_safetensors

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Array = np.ndarray[Any, np.dtype[Any]]


def convolve(x: Array, weight: Array, bias: Array) -> Array:
    """3x3 convolution with padding 1: [B,C,H,W], [O,C,3,3], [O] -> [B,O,H,W]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("bcijkl,ockl->boij", windows, weight, optimize=True) + bias[:, None, None]


def network(x: Array) -> Array:
    """The network of `examples/digits.py` in plain numpy: [B,8,8] from 0 to 1 -> logits [B,10]."""
    w = load_safetensors(EXAMPLES / "digits.safetensors")
    h = np.maximum(convolve(x[:, None], w["conv1.weight"], w["conv1.bias"]), 0)
    h = np.maximum(convolve(h, w["conv2.weight"], w["conv2.bias"]), 0)
    h = h.reshape(len(x), 24, 4, 2, 4, 2).max((3, 5)).reshape(len(x), 384)
    h = np.maximum(h @ w["dense1.weight"] + w["dense1.bias"], 0)
    return h @ w["dense2.weight"] + w["dense2.bias"]


def test_the_data_is_what_its_note_says() -> None:
    digits = load_digits()
    images = np.concatenate([digits["train_images"], digits["test_images"]])
    labels = np.concatenate([digits["train_labels"], digits["test_labels"]])
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and (images.min(), images.max()) == (0, 16)
    assert len(digits["train_labels"]) == 898 and len(digits["test_labels"]) == 899
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    scaled = scale_digits(images)
    assert scaled.dtype == np.float32 and (scaled.min(), scaled.max()) == (0, 1)
    np.testing.assert_array_equal(scaled * 16, images)


def test_numpy_gets_the_logits_of_pytorch() -> None:
    reference = np.load(EXAMPLES / "digits_reference.npz")
    np.testing.assert_array_equal(reference["images"], scale_digits(load_digits()["test_images"][:16]))
    np.testing.assert_allclose(network(reference["images"]), reference["logits"], rtol=1e-5, atol=2e-5)


def test_the_weights_have_the_accuracy_that_the_note_states() -> None:
    digits = load_digits()
    right = network(scale_digits(digits["test_images"])).argmax(1) == digits["test_labels"]
    assert right.sum() == pytest.approx(890, abs=1)  # one image may lie on the edge on another machine's numpy
