"""Owns reference inputs and outputs of a model: the folders `test_data_set_N` that ONNX files come with, and .npz files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FluxError, error

__all__ = ["check"]

RTOL, ATOL = 1e-3, 1e-7
"""What the test suite of ONNX allows; `ATOL` for values around 0 is also `RTOL` of the largest one, a thousand times less."""

Array = np.ndarray[Any, Any]


def check(file: str, reference: str, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Run an ONNX file on reference inputs and compare its results: for each set and result its largest difference, relative to
    the largest number. Raises FX0404 where one is too large, FX0812 where the reference does not have what it must have."""
    from ..onnx import load

    model = load(file, dims=sizes)
    rows = []
    for name, given, wanted in _sets(reference, list(model.inputs), model.outputs):
        found = model(*given)
        found = found if isinstance(found, tuple) else (found,)
        for output, a, b in zip(model.outputs, found, wanted):
            if b is not None:
                rows.append({"set": name, "name": output, "difference": _compared(name, output, np.asarray(a), b)})
    return rows


def _compared(name: str, output: str, found: Array, wanted: Array) -> float:
    if found.shape != wanted.shape or found.dtype.kind != wanted.dtype.kind:
        raise _differs(name, output, f"{found.dtype}{list(found.shape)} is not {wanted.dtype}{list(wanted.shape)}")
    if wanted.dtype.kind not in "fc":
        wrong = int((found != wanted).sum())
        if wrong:
            raise _differs(name, output, f"{wrong} of {wanted.size} elements are others")
        return 0.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        raise _differs(name, output, "infinite numbers or NaN stand at other places")
    largest = float(np.abs(b[both]).max()) if both.any() else 0.0
    far = np.abs(a - b)[both]
    if (far > RTOL * np.abs(b[both]) + ATOL + 1e-3 * RTOL * largest).any():
        raise _differs(name, output, f"it is {far.max():.3g} off, and the largest number is {largest:.3g}")
    return float(far.max()) / (largest or 1.0) if far.size else 0.0


def _differs(name: str, output: str, how: str) -> FluxError:
    return error("FX0404", f"the result {output} of {name} is not the reference's: {how}",
                 help="this is a defect of fluxir or of the reference: please report the model")  # fmt: skip


# ---- reading -------------------------------------------------------------------------------------------------------


def _sets(path: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[tuple[str, list[Any], list[Any]]]:
    """The sets of a reference: a name, the inputs in order, and the results that are there."""
    if path.endswith(".npz"):
        return [_npz(path, inputs, outputs)]
    if not os.path.isdir(path):
        raise _wrong(path, "it is neither a folder nor a .npz file")
    folders = [path] if os.path.exists(os.path.join(path, "input_0.pb")) else _folders(path)
    if not folders:
        raise _wrong(path, "it holds no input_0.pb and no folder test_data_set_0")
    return [_folder(f, inputs, outputs) for f in folders]


def _folders(path: str) -> list[str]:
    return sorted(os.path.join(path, name) for name in os.listdir(path) if name.startswith("test_data_set"))


def _npz(path: str, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, list[Any], list[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [n for n in inputs if n not in arrays]
            if missing:
                raise _wrong(path, f"it has no array called {missing[0]}")
            if not any(n in arrays for n in outputs):
                raise _wrong(path, f"it has none of the results {', '.join(outputs)}")
            return path, [arrays[n] for n in inputs], [arrays[n] if n in arrays else None for n in outputs]
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None
    except (ValueError, KeyError) as reason:
        raise _wrong(path, str(reason).splitlines()[0][:80]) from None


def _folder(path: str, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, list[Any], list[Any]]:
    given = [_pb(os.path.join(path, f"input_{n}.pb")) for n in range(len(inputs))]
    results: list[Any] = []
    for n in range(len(outputs)):
        file = os.path.join(path, f"output_{n}.pb")
        results.append(_pb(file) if os.path.exists(file) else None)
    if all(r is None for r in results):
        raise _wrong(path, "it holds no output_0.pb")
    return os.path.basename(path.rstrip("/")), given, results


def _pb(path: str) -> Array:
    """The tensor in a file of one TensorProto."""
    from ..frontend.onnx import elements, schema, wire

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None
    array, element = elements.to_array(wire.decode(memoryview(data), schema.TENSOR, path))
    if element.narrow:
        raise error("FX1208", f"{path} holds {element.name} elements, which cannot be compared yet")
    return np.asarray(array)


def _wrong(path: str, problem: str) -> FluxError:
    return error(
        "FX0812",
        f"{path} is no reference: {problem}",
        help="give a folder of test_data_set_N, or a .npz with inputs and results by name",
    )
