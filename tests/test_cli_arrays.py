"""Arrays on the command line: assignments, generated inputs, and array files that lie."""

from __future__ import annotations

import io
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fluxir import config
from fluxir.cli.arrays import assignments, generate, read_array, summary, write_array
from fluxir.errors import FluxError


def test_assignments() -> None:
    assert assignments(["x=@a=b.npy", " y = random"], "--input") == {"x": "@a=b.npy", "y": "random"}
    for wrong in (["x"], ["=1"], ["x="], ["x=1", "x=2"]):
        with pytest.raises(FluxError) as caught:
            assignments(wrong, "--input")
        assert caught.value.code == "FX0905"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4)], ids=str)
def test_files_round_trip(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = generate("x", "random", np.dtype(dtype), shape)
    assert array.dtype == dtype and array.shape == shape
    path = str(tmp_path / "a.npy")
    write_array(path, array)
    again = read_array(path, np.dtype(dtype))
    assert again.dtype == dtype and again.shape == shape and again.tobytes() == array.tobytes()
    assert os.listdir(tmp_path) == ["a.npy"]


def test_files_of_numpy_in_any_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (np.arange(6, dtype=np.float64).reshape(2, 3).T, np.arange(6, dtype=">i4"), np.arange(8)[::2]):
        np.save(path, array)
        again = read_array(str(path))
        assert again.dtype.isnative and np.array_equal(again, array)


def test_random_inputs_depend_on_seed_and_name() -> None:
    def draw(name: str, seed: int) -> bytes:
        return generate(name, "random", np.dtype(np.float32), (8,), seed).tobytes()

    assert draw("x", 0) == draw("x", 0) and len({draw("x", 0), draw("y", 0), draw("x", 1)}) == 3


def test_numbers_fill_and_must_fit() -> None:
    assert generate("x", "2.5", np.dtype(np.float32), (2,)).tolist() == [2.5, 2.5]
    assert generate("x", "0x10", np.dtype(np.uint8), ()).item() == 16
    assert generate("x", "true", np.dtype(np.bool_), (1,)).tolist() == [True]
    assert generate("x", "ones", np.dtype(np.int32), (2,)).tolist() == [1, 1]
    for value, dtype in (("256", np.uint8), ("-1", np.uint8), ("1.5", np.int32), ("nan", np.int32), ("2", np.bool_)):
        with pytest.raises(FluxError) as caught:
            generate("x", value, np.dtype(dtype), (2,))
        assert caught.value.code == "FX0217", value
    with pytest.raises(FluxError) as caught:
        generate("x", "some", np.dtype(np.float32), (2,))
    assert caught.value.code == "FX0905"


def saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)  # type: ignore[arg-type]
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


GOOD = saved(np.arange(4))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:20],
        saved(np.array([{}], dtype=object)),
        saved(np.zeros(2, dtype=[("a", "i4")])),
        saved(np.zeros(2, dtype="U3")).replace(b"<U3", b"|O8"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }") + b"\0" * 8,
        header("__import__('os').abort()"),
        header("(" * 500),
    ],
)
def test_files_that_lie_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(FluxError) as caught:
        read_array(str(path))
    assert caught.value.code == "FX0812"


def test_files_that_are_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(FluxError) as caught:
        read_array(str(tmp_path / "none.npy"))
    assert caught.value.code == "FX0803" and caught.value.exit_code == 74
    with pytest.raises(FluxError) as caught:
        write_array(str(tmp_path / "no" / "a.npy"), np.zeros(1))
    assert caught.value.code == "FX0804"
    (tmp_path / "big.npy").write_bytes(GOOD)
    with config.override(max_file_size=10), pytest.raises(FluxError) as caught:
        read_array(str(tmp_path / "big.npy"))
    assert caught.value.code == "FX0908"


def test_summary() -> None:
    assert summary(np.array([1.0, np.nan, 3.0], np.float32)) == {
        "dtype": "float32",
        "shape": [3],
        "min": 1.0,
        "max": 3.0,
        "mean": 2.0,
        "not_finite": 1,
    }
    assert summary(np.zeros((0, 2), np.int32)) == {"dtype": "int32", "shape": [0, 2]}
