"""The safetensors reader and writer: against the format's own library, and against files that lie about themselves."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as official
from hypothesis import given
from hypothesis import strategies as st

from fluxir.errors import FluxError
from fluxir.runtime.safetensors import (
    load_safetensors,
    parse_safetensors,
    read_safetensors_header,
    safetensors_bytes,
    save_safetensors,
)

PLAIN = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
SMALL = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]


def pack(header: object, data: bytes = b"") -> bytes:
    """A file with this header (an object for JSON, or its bytes) and this data, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def example(dtype: str) -> np.ndarray[Any, Any]:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype in SMALL else np.dtype(dtype)
    return np.array([[0, 1, 2], [1, 4, 1]]).astype(kind)


@pytest.mark.parametrize("dtype", PLAIN)
def test_the_official_library_reads_what_we_write(dtype: str) -> None:
    array = example(dtype)
    there = official.load(safetensors_bytes({"x": array}))
    assert there["x"].dtype == array.dtype
    np.testing.assert_array_equal(there["x"], array)


@pytest.mark.parametrize("dtype", PLAIN)
def test_we_read_what_the_official_library_writes(dtype: str) -> None:
    array = example(dtype)
    back = parse_safetensors(official.save({"x": array}, {"by": "them"}))
    assert back["x"].dtype == array.dtype
    np.testing.assert_array_equal(back["x"], array)


@pytest.mark.parametrize("dtype", SMALL)
def test_small_floats_come_back(dtype: str) -> None:
    array = example(dtype)
    back = parse_safetensors(safetensors_bytes({"x": array}))["x"]
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


@given(st.lists(st.tuples(st.sampled_from(PLAIN), st.lists(st.integers(0, 4), max_size=4)), max_size=6))
def test_any_mixture_comes_back_aligned(kinds: list[tuple[str, list[int]]]) -> None:
    random = np.random.default_rng(len(kinds))
    tensors = {f"t{i}": random.integers(0, 2, shape).astype(dtype) for i, (dtype, shape) in enumerate(kinds)}
    text = safetensors_bytes(tensors)
    assert (8 + struct.unpack("<Q", text[:8])[0]) % 64 == 0
    back = parse_safetensors(text)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.aligned and not back[name].flags.writeable


def test_layout_and_byte_order_of_the_source_do_not_matter() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = safetensors_bytes({"x": base.T.copy()})
    assert safetensors_bytes({"x": base.T}) == plain
    assert safetensors_bytes({"x": base.T.astype(">f4")}) == plain


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    tensors = {"b": np.zeros(3, np.int8), "a": np.ones((2, 2)), "c": np.array(1.0, np.float32)}
    notes = {"z": "1", "a": "2"}
    assert safetensors_bytes(tensors, notes) == safetensors_bytes(
        dict(reversed(tensors.items())), dict(reversed(notes.items()))
    )


def test_a_file_is_mapped_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"x": np.arange(4.0), "y": np.zeros((0, 3), np.int32)}, {"note": "größer"})
    mapped = load_safetensors(path)
    copied = load_safetensors(path, map_file=False)
    save_safetensors(path, {"x": np.arange(8.0)})  # the mapping goes on seeing the file it was made of
    for arrays in (mapped, copied):
        np.testing.assert_array_equal(arrays["x"], np.arange(4.0))
        assert arrays["y"].shape == (0, 3)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert load_safetensors(path)["x"].shape == (8,)


def test_header_alone_and_chosen_names(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"x": np.arange(4.0), "y": np.ones(2, np.float16)}, {"note": "n"})
    header = read_safetensors_header(path)
    assert header.metadata == {"note": "n"}
    assert {name: (e.dtype, e.shape) for name, e in header.tensors.items()} == {"x": ("F64", (4,)), "y": ("F16", (2,))}
    assert list(load_safetensors(path, names=["y"])) == ["y"]
    with pytest.raises(FluxError, match="no tensor named 'z'") as caught:
        load_safetensors(path, names=["y", "z"])
    assert caught.value.code == "FX0809" and "x, y" in (caught.value.help or "")


def test_a_misaligned_tensor_is_copied_into_place() -> None:
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F64", [1], [1, 9])}
    back = parse_safetensors(pack(header, b"\x07" + struct.pack("<d", 2.5)))
    assert back["a"][0] == 7 and back["b"][0] == 2.5 and back["b"].flags.aligned


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "too short for a length": (b"\1\0\0", "takes 8"),
    "header beyond the end": (struct.pack("<Q", 50) + b"{}", "cut off"),
    "absurd header length": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "not JSON": (pack(b"{nope}"), "not valid JSON"),
    "another kind of file": (pack(b"\x80\x04pickle"), "not a safetensors file"),
    "a list": (pack(b"[]"), "does not begin"),
    "spaces in front": (pack(b"  {}"), "does not begin"),
    "not UTF-8": (pack(b'{"\xff":1}'), "not valid JSON"),
    "nested deeply": (pack(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "a number of 10,000 digits": (pack(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "NaN": (pack(b'{"a":NaN}'), "not valid JSON"),
    "name twice": (pack(b'{"a":1,"a":2}'), "occurs twice"),
    "key twice in an entry": (
        pack(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "occurs twice",
    ),
    "lone surrogate": (pack(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "not valid Unicode"),
    "entry is no table": (pack({"a": 3}), "its entry"),
    "entry lacks a key": (pack({"a": {"dtype": "F32", "shape": [2]}}), "its entry"),
    "entry has one key more": (pack({"a": entry() | {"more": 1}}, bytes(8)), "nothing else"),
    "unknown dtype": (pack({"a": entry("F4")}, bytes(8)), "not supported"),
    "dtype is a list": (pack({"a": entry(["F32"])}, bytes(8)), "not supported"),
    "negative size": (pack({"a": entry(shape=[-2])}, bytes(8)), "list of sizes"),
    "size is a float": (pack({"a": entry(shape=[2.0])}, bytes(8)), "list of sizes"),
    "size is true": (pack({"a": entry(shape=[True, 2])}, bytes(8)), "list of sizes"),
    "too many axes": (pack({"a": entry(shape=[1] * 64 + [2])}, bytes(8)), "65 axes"),
    "zero and huge sizes": (pack({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}), "too large"),
    "size overflows 64 bits": (pack({"a": entry(shape=[2**62, 4])}, bytes(8)), "too large"),
    "offsets are one number": (pack({"a": entry(offsets=8)}, bytes(8)), "pair"),
    "offsets backwards": (pack({"a": entry(offsets=[8, 0])}, bytes(8)), "takes 8 bytes"),
    "negative offset": (pack({"a": entry(offsets=[-8, 0])}, bytes(8)), "pair"),
    "offsets do not fit the shape": (pack({"a": entry(offsets=[0, 12])}, bytes(12)), "takes 8 bytes"),
    "gap": (pack({"a": entry(offsets=[4, 12])}, bytes(12)), "gap"),
    "overlap": (pack({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
    "same bytes twice": (pack({"a": entry(), "b": entry()}, bytes(8)), "overlaps"),
    "data cut off": (pack({"a": entry()}, bytes(7)), "cut off"),
    "data too long": (pack({"a": entry()}, bytes(9)), "belong to no tensor"),
    "metadata is a text": (pack({"__metadata__": "x"}), "table of texts"),
    "metadata holds a number": (pack({"__metadata__": {"x": 1}}), "table of texts"),
    "bool of value 2": (pack({"a": entry("BOOL", [2], [0, 2])}, b"\1\2"), "neither 0 nor 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(case: str, tmp_path: Path) -> None:
    data, words = WRONG[case]
    with pytest.raises(FluxError) as caught:
        parse_safetensors(data, source="w.safetensors")
    assert caught.value.code == "FX0809" and caught.value.exit_code == 74
    assert words in caught.value.message and "w.safetensors" in caught.value.message
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(FluxError) as from_file:
        load_safetensors(path)
    assert words in from_file.value.message


@given(st.data())
def test_damage_anywhere_is_an_error_or_an_array_never_a_crash(data: st.DataObject) -> None:
    good = bytearray(safetensors_bytes({"x": np.arange(3, dtype=np.int16), "flag": np.array([True, False])}))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    text = bytes(good[: data.draw(st.integers(0, len(good)))]) if data.draw(st.booleans()) else bytes(good)
    try:
        arrays = parse_safetensors(text)
    except FluxError as refused:
        assert refused.code == "FX0809"
    else:
        assert sum(array.nbytes for array in arrays.values()) < len(text)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", "a\0b"):
        with pytest.raises(FluxError) as caught:
            load_safetensors(path)
        assert caught.value.code == "FX0803"
    with pytest.raises(FluxError) as unwritable:
        save_safetensors(tmp_path / "no" / "such" / "folder.safetensors", {"x": np.zeros(1)})
    assert unwritable.value.code == "FX0804"
    (tmp_path / "folder").mkdir()
    with pytest.raises(FluxError):
        save_safetensors(tmp_path / "folder", {"x": np.zeros(1)})
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]  # and no temporary file stays behind


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"x": np.zeros(1, np.complex64)}, None),
        ({"x": np.array(["text"])}, None),
        ({"x": np.array([None])}, None),
        ({"__metadata__": np.zeros(1)}, None),
        ({"\ud800": np.zeros(1)}, None),
        ({"x": np.zeros(1)}, {"a": 1}),
        ({"x": np.zeros(1)}, {"a": "\ud800"}),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tensors: dict[str, Any], metadata: dict[str, Any] | None) -> None:
    with pytest.raises(FluxError) as caught:
        safetensors_bytes(tensors, metadata)
    assert caught.value.code == "FX0809"
