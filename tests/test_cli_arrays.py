"""Arrays on the command line: assignments, generated inputs, and array files that lie."""

from __future__ import annotations

import io
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fluxir import config
from fluxir.cli import main
from fluxir.cli.array_files import members, read_file, read_raw, write_files
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


# ---- files of several arrays, and of none but items ------------------------------------------------------------------------------


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_]


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "raw", "bin"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_file_round_trips(kind: str, dtype: type, tmp_path: Path) -> None:
    d = np.dtype(dtype)
    for shape in ((3, 4), (), (0, 4)):
        a = generate("x", "random", d, shape)
        path = str(tmp_path / f"a.{kind}")
        write_files({"x": (path, a)})
        again = read_raw(path, d, list(shape)) if kind in ("raw", "bin") else read_file(path, "x", d)
        assert again.dtype == d and again.shape == shape and again.tobytes() == a.tobytes()
        assert os.listdir(tmp_path) == [f"a.{kind}"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_of_several_arrays(kind: str, tmp_path: Path) -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.int64)
    path = str(tmp_path / f"a.{kind}")
    write_files({"x": (path, x), "why": (f"{path}:y", y)})
    assert sorted(members(path) or []) == ["x", "y"]
    assert np.array_equal(read_file(path, "x", x.dtype), x) and np.array_equal(read_file(f"{path}:y", "x", y.dtype), y)
    with pytest.raises(FluxError) as e:
        read_file(path, "z", x.dtype)
    assert e.value.code == "FX0905" and "it holds" in e.value.help
    write_files({"only": (path, x)})
    assert np.array_equal(read_file(path, "anything", x.dtype), x), "the only one there is"


def test_archives_of_numpy_and_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((100, 100)), y=np.arange(3).astype(">i4"))
    assert read_file(str(path), "x", np.dtype(np.float64)).shape == (100, 100)
    assert read_file(f"{path}:y", "x", np.dtype(np.int32)).tolist() == [0, 1, 2]

    def refused(code: str) -> None:
        with pytest.raises(FluxError) as e:
            read_file(str(path), "x", np.dtype(np.float64))
        assert e.value.code == code

    with config.override(max_file_size=1000):
        refused("FX0908")  # what it would become, not what it is
    np.savez(path, x=np.array([object()], dtype=object))
    refused("FX0812")
    for content in (b"", b"PK", b"no archive", path.read_bytes()[:-30]):
        path.write_bytes(content)
        refused("FX0812")
    path.unlink()
    refused("FX0803")


def test_files_without_a_head(tmp_path: Path) -> None:
    path = str(tmp_path / "a.raw")
    a = np.arange(12, dtype="<f4")
    a.tofile(path)
    f4 = np.dtype(np.float32)
    assert read_raw(path, f4, [None, 4]).tolist() == a.reshape(3, 4).tolist()
    assert read_raw(path, f4, [3, 4]).shape == (3, 4)
    for shape in ([None, 5], [3, 5], [], [None, 0]):
        with pytest.raises(FluxError) as e:
            read_raw(path, f4, shape)
        assert e.value.code == "FX0812"
    with pytest.raises(FluxError) as e:
        read_raw(str(tmp_path / "none.raw"), f4, [3])
    assert e.value.code == "FX0803"
    with config.override(max_file_size=10), pytest.raises(FluxError) as e:
        read_raw(path, f4, [12])
    assert e.value.code == "FX0908"


MODEL = """
import fluxir as fx

@fx.model
def f(x: fx.f32["B", 3], y: fx.f32["B", "T"], k: fx.f32):
    return {"a": x * k, "b": fx.sum(y, axis=1)}
"""


def test_run_takes_and_writes_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODEL)
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 5), np.float32)
    np.savez("all.npz", x=x, y=y, other=y)
    np.save("x.npy", x)
    y.tofile("y.raw")
    for given in (
        ["-i", "@all.npz", "-i", "k=2"],
        ["-i", "x=@x.npy", "-i", "y=@all.npz:other", "-i", "k=2"],
        ["-i", "x=@x.npy", "-i", "y=@y.raw", "-i", "k=2"],  # T follows from the bytes
        ["-i", "@all.npz", "-i", "x=@x.npy", "-i", "k=2"],
    ):
        assert main(["run", "m.py", *given, "-o", "@out.npz", "-o", "b=@b.bin"]) == 0
        assert sorted(members("out.npz") or []) == ["a"]
        assert np.array_equal(read_file("out.npz", "a", x.dtype), x * 2)
        assert np.fromfile("b.bin", "<f4").tolist() == [5, 5]
    assert main(["run", "m.py", *given, "-o", "@out.safetensors"]) == 0
    assert sorted(members("out.safetensors") or []) == ["a", "b"]
    for wrong in (
        ["-i", "x=random", "-i", "y=@y.raw", "-i", "k=2"],  # neither B nor T is known
        ["-i", "@x.npy", "-i", "k=2"],
        ["-i", "@all.npz", "-i", "k=2", "-o", "@out.npy"],
        ["-i", "@all.npz:x", "-i", "k=2"],
    ):
        assert main(["run", "m.py", *wrong]) != 0
