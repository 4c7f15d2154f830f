"""ONNX files that are wrong as files: their encoding, their constants, and where these lie."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.hostile import add, hostile
from tests.onnx_build import chunk, external, graph, model, node, number, tensor, value, varint

X, Y = value("x", [4]), value("y", [4])


def with_constant(constant: bytes, field: int = 5) -> bytes:
    """A model that adds a constant called w to its input."""
    return model(graph([node("Add", ["x", "w"], ["y"])], [X], [Y]) + chunk(field, constant))


def dims(*sizes: int, kind: int = 1) -> bytes:
    """The head of a constant called w: its shape and element type."""
    return b"".join(number(1, d) for d in sizes) + number(2, kind) + chunk(8, "w")


def onnx(code: str) -> Callable[[Callable[[], bytes | str]], None]:
    return hostile(code, ".onnx")


# ---- encoding ------------------------------------------------------------------------------------------------------


@onnx("FX1201")
def empty() -> bytes:
    """No bytes at all, which cannot be mapped."""
    return b""


@onnx("FX1201")
def lfs_pointer() -> str:
    """What is there when a large file was not fetched."""
    return "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5\n"


@onnx("FX1201")
def cut_off() -> bytes:
    """Ends in the middle of a constant."""
    return with_constant(tensor(np.ones(4, np.float32), "w"))[:-9]


@onnx("FX1201")
def endless_number() -> bytes:
    """A number whose every byte says that another one follows."""
    return b"\x08" + b"\xff" * 100_000


@onnx("FX1201")
def endless_packed_numbers() -> bytes:
    """The same among packed numbers, which are decoded by other code."""
    return with_constant(dims(4, kind=7) + chunk(7, b"\xff" * 100_000))


@onnx("FX1201")
def length_beyond() -> bytes:
    """A field longer than the file."""
    return varint(7 << 3 | 2) + varint(1 << 40) + b"x"


@onnx("FX1201")
def length_of_64_bits() -> bytes:
    """A length that is negative, or wraps around, where it is kept in 64 bits."""
    return varint(7 << 3 | 2) + varint((1 << 64) - 4) + b"xxxx"


@onnx("FX1201")
def unknown_wire_type() -> bytes:
    """A group, which protobuf has given up."""
    return varint(7 << 3 | 3) + b"x"


@onnx("FX1201")
def number_for_a_name() -> bytes:
    """A field of the wrong wire type: a number where a name is meant."""
    return model(graph([number(4, 7)], [X], [Y]))


@onnx("FX1201")
def name_for_a_number() -> bytes:
    """A text where a number is meant."""
    return chunk(8, chunk(2, "13")) + chunk(7, graph([], [X], [X]))


@onnx("FX1201")
def name_without_encoding() -> bytes:
    """A name that is not UTF-8."""
    return model(graph([node("Neg", ["x"], ["y"])], [X], [Y]) + chunk(2, b"\xff\xfe\x80"))


@onnx("FX1202")
def name_of_megabytes() -> bytes:
    """Two megabytes that every message about the node would repeat."""
    return model(graph([node("Neg", ["x" * (1 << 21)], ["y"])], [X], [Y]))


@onnx("FX1202")
def messages_in_messages() -> bytes:
    """A type of a sequence of sequences ... : overflows the stack of whoever reads it by recursion."""
    body = b""
    for _ in range(5000):
        body = chunk(4, chunk(1, body))
    return model(graph([], [chunk(1, "x") + chunk(2, body)], [X]))


@onnx("FX1202")
def graphs_in_graphs() -> bytes:
    """Branches in branches in branches, 200 deep."""
    body = graph([], [], [])
    for _ in range(200):
        body = graph([node("If", ["x"], ["y"], then_branch=body)], [], [])
    return model(body)


@onnx("FX1202")
def millions_of_nodes() -> bytes:
    """Two bytes in the file are a node of a hundred bytes in memory."""
    return number(1, 10) + chunk(8, number(2, 21)) + chunk(7, chunk(1, b"") * 4_000_000)


@onnx("FX1202")
def millions_of_numbers() -> bytes:
    """Numbers one by one instead of packed, each an object in memory."""
    return with_constant(dims(4, kind=7) + number(7, 1) * 4_000_000)


@onnx("FX1201")
def no_opset() -> bytes:
    """A graph whose operators mean nothing, without a version."""
    return chunk(7, graph([node("Neg", ["x"], ["y"])], [X], [Y]))


@onnx("FX1201")
def no_graph() -> bytes:
    """Versions of nothing."""
    return number(1, 10) + chunk(8, number(2, 21))


# ---- constants -----------------------------------------------------------------------------------------------------


@onnx("FX1201")
def negative_size() -> bytes:
    """A shape whose product is positive again: -2 times -2."""
    return with_constant(dims(-2, -2) + chunk(9, bytes(16)))


@onnx("FX1202")
def product_of_sizes_overflows() -> bytes:
    """2^32 times 2^32 is 0 in 64 bits, as many bytes as the constant has."""
    return with_constant(dims(1 << 32, 1 << 32) + chunk(9, b""))


@onnx("FX1202")
def empty_but_huge() -> bytes:
    """No elements, since one size is 0; the others overflow."""
    return with_constant(dims(0, 1 << 62, 1 << 62) + chunk(9, b""))


@onnx("FX1202")
def thousand_axes() -> bytes:
    """More axes than arrays can have."""
    return with_constant(dims(*[1] * 1000) + chunk(9, bytes(4)))


@onnx("FX1202")
def million_axes() -> bytes:
    """So many sizes that their product is a number of megabytes."""
    return with_constant(chunk(1, varint((1 << 62) + 1) * 300_000) + number(2, 1) + chunk(8, "w"))


@onnx("FX1201")
def fewer_bytes_than_the_shape_says() -> bytes:
    """Whoever believes the shape reads what lies behind."""
    return with_constant(dims(4) + chunk(9, bytes(8)))


@onnx("FX1201")
def more_elements_than_are_there() -> bytes:
    """A terabyte claimed by ten bytes."""
    return with_constant(dims(1 << 38) + chunk(9, bytes(8)))


@onnx("FX1201")
def list_shorter_than_the_shape() -> bytes:
    """The same with elements in a list."""
    return with_constant(dims(1 << 30, kind=7) + chunk(7, b"\1\2"))


@onnx("FX1201")
def packed_floats_cut() -> bytes:
    """Seven bytes of floats of four."""
    return with_constant(dims(2) + chunk(4, bytes(7)))


@onnx("FX1208")
def unknown_element_type() -> bytes:
    """A number for which there is no type."""
    return with_constant(dims(4, kind=999) + chunk(9, bytes(16)))


@onnx("FX1201")
def texts_that_are_not_there() -> bytes:
    """A billion texts, none of which is in the file."""
    return with_constant(dims(1 << 30, kind=8))


def sparse(at: np.ndarray, *sizes: int) -> bytes:  # type: ignore[type-arg]
    parts = chunk(1, tensor(np.ones(len(at), np.float32), "w")) + chunk(2, tensor(at))
    return with_constant(parts + b"".join(number(3, d) for d in sizes), 15)


@onnx("FX1202")
def sparse_bomb() -> bytes:
    """One element, with 2^40 zeros around it."""
    return sparse(np.zeros(1, np.int64), 1 << 20, 1 << 20)


@onnx("FX1201")
def sparse_outside() -> bytes:
    """An element beyond the end of its tensor."""
    return sparse(np.array([4], np.int64), 4)


@onnx("FX1201")
def sparse_before() -> bytes:
    """An element before the beginning, which Python counts from the end."""
    return sparse(np.array([-1], np.int64), 4)


@onnx("FX1201")
def sparse_between() -> bytes:
    """Places that are floats."""
    return sparse(np.array([0.5], np.float32), 4)


@onnx("FX1202")
def input_of_exabytes() -> bytes:
    """An input whose size in bytes overflows."""
    return model(graph([node("Neg", ["x"], ["y"])], [value("x", [1 << 40, 1 << 40])], [Y]))


@onnx("FX1202")
def input_of_many_axes() -> bytes:
    """An input of more axes than arrays can have."""
    return model(graph([node("Neg", ["x"], ["y"])], [value("x", [1] * 100)], [Y]))


# ---- data in other files -------------------------------------------------------------------------------------------


def elsewhere(
    name: str, attacks: str, location: str, prepare: Callable[[Path], object] = lambda folder: None, **where: str
) -> None:
    """A model whose constant lies in the file `location`; `secret` lies above its folder."""

    def write(folder: Path) -> Path:
        prepare(folder)
        path = folder / "file.onnx"
        path.write_bytes(with_constant(external("w", (4,), location=location, **where)))
        return path

    add(name, attacks, "FX1206", ".onnx", write)


def data(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(64))


def bound(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:  # a path of a socket must be short
        here = os.open(folder, os.O_RDONLY)
        s.bind(f"/proc/self/fd/{here}/w.bin")
        os.close(here)


def folder_link(folder: Path) -> None:
    (folder / "inside").symlink_to("..")


elsewhere("absolute_path", "Reads any file of the machine by its full name.", "/etc/passwd")
elsewhere("parent_folder", "Reads a file above the model's folder.", "../secret")
elsewhere(
    "parent_folder_hidden", "The same behind a folder that is there.", "sub/../../secret", lambda f: (f / "sub").mkdir()
)
elsewhere("backslashes", "The same as Windows writes it.", "..\\secret")
elsewhere("drive", "A path of Windows.", "C:\\secret")
elsewhere(
    "link_to_file",
    "A symbolic link that leads out of the folder.",
    "w.bin",
    lambda f: (f / "w.bin").symlink_to("../secret"),
)
elsewhere("link_to_folder", "A folder on the way is a symbolic link.", "inside/secret", folder_link)
elsewhere(
    "link_to_device",
    "A symbolic link to a device without an end.",
    "w.bin",
    lambda f: (f / "w.bin").symlink_to("/dev/zero"),
)
elsewhere(
    "hard_link",
    "A second name of a file outside of the folder.",
    "w.bin",
    lambda f: (f / "w.bin").hardlink_to(f.parent / "secret"),
)
elsewhere("pipe", "A named pipe: opening it waits for ever.", "w.bin", lambda f: os.mkfifo(f / "w.bin"))
elsewhere("socket", "A socket, which is no file.", "w.bin", bound)
elsewhere("folder", "A folder instead of a file.", "w.bin", lambda f: (f / "w.bin").mkdir())
elsewhere("missing", "A file that is not there.", "w.bin")
elsewhere("nul", "A name that ends earlier in C.", "w.bin\0/../../secret", data)
elsewhere("no_name", "No name: the folder itself.", "")
elsewhere("dots", "Names that are the folder itself.", "./././.")
elsewhere("deep", "A path of ten thousand parts.", "a/" * 10_000 + "b")
elsewhere("control_characters", "A name that commands the terminal which shows it.", "\x1b[2J\x1b]0;owned\x07")
elsewhere("offset_beyond", "Data from beyond the end of the file.", "w.bin", data, offset="1000")
elsewhere(
    "offset_overflows",
    "Offset and length whose sum is small again in 64 bits.",
    "w.bin",
    data,
    offset=str((1 << 64) - 16),
    length="16",
)
elsewhere("offset_negative", "Data from before the file.", "w.bin", data, offset="-16")
elsewhere("offset_of_many_digits", "A number that takes long to read.", "w.bin", data, offset="9" * 60_000)
elsewhere("offset_words", "No number at all.", "w.bin", data, offset="1e1")
elsewhere(
    "offset_other_digits", "Digits of another script, which Python takes for numbers.", "w.bin", data, offset="\u0661"
)
elsewhere("length_differs", "A length that is not what the shape takes.", "w.bin", data, length="64")
elsewhere(
    "length_short",
    "Fewer bytes than the shape takes: whoever believes it reads beyond.",
    "w.bin",
    lambda f: (f / "w.bin").write_bytes(bytes(8)),
)
