"""What is fuzzed: the ONNX importer, the reader of IR text, of safetensors files, and of artifacts."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.driver import Lowered
from fluxir.embed import lower_function
from fluxir.frontend.onnx import registry, schema
from fluxir.frontend.onnx.model import Model, parse
from fluxir.frontend.onnx.survey import survey
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module
from fluxir.runtime.artifact import read_artifact
from fluxir.runtime.elf import load_object
from fluxir.runtime.program import Program
from fluxir.runtime.safetensors import load_safetensors, parse_safetensors, safetensors_bytes
from tests.fuzz import mutate
from tests.onnx_build import chunk, external, graph, model, node, tensor, value
from tests.programs import random_program


class Target:
    """`make` gives a file that is wrong in some way, `read` reads it. `allowed`: codes of internal errors that are none here."""

    name = ""
    allowed: frozenset[str] = frozenset()
    wall = 30.0  # seconds without progress after which the child is ended

    def make(self, rng: random.Random) -> bytes:
        raise NotImplementedError

    def read(self, data: bytes) -> None:
        raise NotImplementedError

    def more(self) -> None:
        """Find further files to begin with, where there is time for that."""


# ---- ONNX ----------------------------------------------------------------------------------------------------------


def onnx_models() -> list[bytes]:
    """Small models with most parts that a file can have."""
    f = np.float32
    x, y = value("x", ["batch", 4]), value("y", ["batch", 4])
    w = tensor(np.ones((4, 4), f), "w")
    branch = graph([node("Mul", ["x", "w"], ["t"])], [], [value("t", ["batch", 4])])
    other = graph([node("Neg", ["x"], ["t"])], [], [value("t", ["batch", 4])])
    body = graph(
        [
            node("Identity", ["c"], ["go"]),
            node("Add", ["s", "w"], ["s2"]),
            node("ReduceSum", ["s2"], ["row"], keepdims=0),
        ],
        [value("i", [], "int64"), value("c", [], "bool"), value("s", [4, 4])],
        [value("go", [], "bool"), value("s2", [4, 4]), value("row")],
    )
    step = graph(
        [node("Add", ["h", "r"], ["h2"]), node("Tanh", ["h2"], ["o"])],
        [value("h", [4]), value("r", [4])],
        [value("h2", [4]), value("o", [4])],
    )
    shapes = [
        node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "zero"], ["n"], axis=0), node("Unsqueeze", ["n", "zero1"], ["n1"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"]),
    ]  # fmt: skip
    function = (
        chunk(1, "Twice") + chunk(4, "a") + chunk(5, "b") + chunk(7, node("Add", ["a", "a"], ["b"])) + chunk(10, "own")
    )
    i = np.int64
    return [
        model(graph([node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["y"])], [x], [y], [w, tensor(np.ones(4, f), "b")])),
        model(graph(shapes, [x], [y], [tensor(i(0), "zero"), tensor(np.array([0], i), "zero1"), tensor(np.array([2, 2], i), "rest")])),
        model(graph([node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["p"], to=9), node("If", ["p"], ["y"], then_branch=branch, else_branch=other)], [x], [y], [w])),
        model(graph([node("Loop", ["n", "", "w"], ["y", "rows"], body=body)], [x], [y, value("rows", [3])], [w, tensor(i(3), "n")])),
        model(graph([node("Scan", ["h0", "x"], ["hn", "y"], body=step, num_scan_inputs=1)], [x], [y], [tensor(np.zeros(4, f), "h0")])),
        model(graph([node("Twice", ["x"], ["t"], "own"), node("Softmax", ["t"], ["y"], axis=1)], [x], [y])) + chunk(8, chunk(1, "own") + b"\x10\x01") + chunk(25, function),
        model(graph([node("Conv", ["img", "k"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]), node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]), node("GlobalAveragePool", ["p"], ["y"])], [value("img", ["n", 1, 8, "w"])], [y], [tensor(np.ones((3, 1, 3, 3), f), "k")])),
        model(graph([node("SequenceConstruct", ["x", "x"], ["s"]), node("ConcatFromSequence", ["s"], ["y"], axis=0)], [x], [y])),
        model(graph([node("MatMul", ["x", "e"], ["y"])], [x], [y], [external("e", (4, 4), location="w.bin", offset="0", length="64")])),
        model(graph([node("LSTM", ["q", "W", "R"], ["", "h"], hidden_size=2), node("Squeeze", ["h"], ["y"])], [value("q", ["t", 1, 3])], [y], [tensor(np.ones((1, 8, 3), f), "W"), tensor(np.ones((1, 8, 2), f), "R")])),
        model(graph([node("QuantizeLinear", ["x", "sc", "zp"], ["q"]), node("DequantizeLinear", ["q", "sc", "zp"], ["y"])], [x], [y], [tensor(f(0.1), "sc"), tensor(np.uint8(3), "zp")])),
    ]  # fmt: skip


class Onnx(Target):
    """Parses, looks through, and makes a program of a model; some are lowered to loops."""

    name = "onnx"

    def __init__(self) -> None:
        registry.find("", "Add", 21)
        self.seeds = onnx_models()
        self.ops = sorted(registry.HANDLERS)
        self.count = 0
        self.folder = Path(tempfile.mkdtemp(prefix="fluxir-fuzz-"))
        (self.folder / "w.bin").write_bytes(bytes(64))

    def more(self) -> None:
        """The backend suite of the package onnx, where that is installed: most operators with most attributes."""
        with contextlib.suppress(ImportError):
            from tests.onnx_suite import cases

            self.seeds = onnx_models() + [c.model for c in cases() if len(c.model) < 4000]

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            data = self.random_graph(rng)
            return mutate.changed_bytes(data, rng) if rng.random() < 0.1 else data
        data = rng.choice(self.seeds)
        parts = mutate.parts_of(data, schema.MODEL)
        words = sorted(
            {p[2] for h, i in mutate._places(parts) if isinstance((p := h[i])[2], bytes)}
            | {rng.choice(self.ops)[1].encode()}
        )
        mutate.changed_message(parts, rng, words)
        data = mutate.encoded(parts)
        return mutate.changed_bytes(data, rng) if rng.random() < 0.1 else data

    def random_graph(self, rng: random.Random) -> bytes:
        """A few nodes of any operators, with inputs and attributes of the right kinds and wild values."""
        arrays = {
            "c0": np.float32(0.5), "c1": np.ones(3, np.float32), "c2": np.arange(6, dtype=np.float32).reshape(2, 3),
            "i0": np.int64(rng.choice([0, 1, 2, 3, -1, 1 << 40])), "i1": np.array([rng.randint(-2, 4) for _ in range(rng.randint(0, 3))], np.int64),
            "i2": np.array([mutate.number(rng) % (1 << 62) for _ in range(2)], np.int64), "b0": np.bool_(True), "u1": np.ones(4, np.uint8),
            "c4": np.ones((1, 2, 4, 4), np.float32),
        }  # fmt: skip
        names = ["x", "z", *arrays]
        nodes = []
        for k in range(rng.randint(1, 4)):
            domain, op = rng.choice(self.ops)
            handler = registry.HANDLERS[domain, op][-1]
            count = rng.randint(
                sum(not p.optional for p in handler.parameters),
                len(handler.parameters) + (2 if handler.variadic else 0),
            )
            inputs = [rng.choice(names) if rng.random() < 0.95 else "" for _ in range(count)]
            attributes = {
                a.name: _attribute(a.kind, rng) for a in handler.attributes.values() if a.required or rng.random() < 0.3
            }
            outputs = [f"v{k}_{j}" for j in range(rng.choice([1, 1, 1, 2, 3]))]
            nodes.append(
                node(
                    op,
                    inputs,
                    outputs,
                    domain,
                    **{n: v for n, v in attributes.items() if v is not None and not isinstance(v, list) or v},
                )
            )
            names += outputs[:1] * 4
        shape = rng.choice([["n", 4], [2, 3], [1, 2, "h", 5], [3], []])
        return model(
            graph(nodes, [value("x", shape), value("z", [2, 2], "int64")], [value(names[-1])], [tensor(a, n) for n, a in arrays.items()]),
            21, com_microsoft=1, ai_onnx_ml=5, ai_onnx_preview_training=1,
        )  # fmt: skip

    def read(self, data: bytes) -> None:
        found = parse(data, "fuzz.onnx")
        survey(found)
        m = Model(found, "fuzz.onnx", folder=self.folder)
        types = list(m.inputs.values())
        if any(t is None for t in types):
            return
        lowered = lower_function(m, *types, name="main")
        text = print_module(lowered.module)
        self.count += 1
        if self.count % 4 == 0:
            parse_module(text)
        if self.count % 10 == 0 and lowered.module.entry.op_count < 2000:
            lowered.build("cpu", verify="changed")


def _attribute(kind: int, rng: random.Random) -> Any:
    words = [
        "constant",
        "reflect",
        "linear",
        "nearest",
        "SAME_UPPER",
        "NOTSET",
        "forward",
        "bidirectional",
        "sum",
        "none",
        "ij,jk->ik",
        "Relu",
        "BTNH",
    ]
    match kind:
        case 1:
            return rng.choice([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")])
        case 2:
            return rng.choice([0, 1, 1, 2, 3, -1, mutate.number(rng)])
        case 3:
            return rng.choice(words)
        case 4:
            return np.arange(rng.randint(0, 4), dtype=np.float32)
        case 5:
            return graph([node("Identity", ["x"], ["r"])], [value("x", [2])], [value("r", [2])])
        case 6:
            return [rng.uniform(-1, 1) for _ in range(rng.randint(1, 4))]
        case 7:
            return [rng.choice([0, 1, 1, 2, 3, -1, mutate.number(rng)]) for _ in range(rng.randint(1, 4))]
    return None


# ---- IR text -------------------------------------------------------------------------------------------------------

WORDS = (
    "f32[B,4] i64 9999999999999999999999 -1 %x ( ) [ ] { } <B*2> none true @main scan call while !f32[3] axes carry=9 "
    "f32[99999999999,99999999999] f32[B-100] f32[0] dims 1e400 nan 0 7 bool f64 // add matmul dense<f32: 1> resource #0 if "
    'reshape shape concat pad f32x8 &f32[4] kernel host return yield -> : = , "a\\u001b" @ x.py:1 \\ module attrs'
).split(" ")


KINDS = [
    re.compile(p)
    for p in (r"%\w+", r"%\w+", r"\b(?:f32|i64|bool)(?:\[[^\]]*\])?", r"(?<== )\w+", r"\b\d+\b", r"\[[a-z]+=[^\]]*\]", r"dims .*", r"<[^>]*>")
]  # fmt: skip


class Text(Target):
    """Parses and verifies IR text; what is taken is written and read back, and some of it lowered to loops."""

    name = "ir"

    def __init__(self) -> None:
        self.seeds = [print_module(random_program(n).module) for n in range(30)]
        self.taken = 0

    def make(self, rng: random.Random) -> bytes:
        text = rng.choice(self.seeds)
        if rng.random() < 0.3:
            text = mutate.changed_text(text, rng, WORDS)
        else:  # a value, type, op or number in the place of another one: what is left is often a program
            for _ in range(rng.randint(1, 3)):
                kind = rng.choice(KINDS)
                places, others = list(kind.finditer(text)), kind.findall(rng.choice(self.seeds))
                if places and others:
                    m = rng.choice(places)
                    word = str(mutate.number(rng)) if m[0].isdigit() and rng.random() < 0.5 else rng.choice(others)
                    text = text[: m.start()] + word + text[m.end() :]
        data = text.encode("utf-8", "replace")
        return mutate.changed_bytes(data, rng) if rng.random() < 0.1 else data

    def read(self, data: bytes) -> None:
        m = parse_module(data.decode("utf-8", "replace"), "fuzz.fx")
        verify_module(m)
        text = print_module(m)
        assert print_module(parse_module(text)) == text, "what is printed reads back otherwise"
        self.taken += 1
        if self.taken % 4 == 0:
            Lowered(m).build("cpu", verify="changed")


# ---- safetensors ---------------------------------------------------------------------------------------------------


class Safetensors(Target):
    """Reads the header and the arrays, from memory and from a file."""

    name = "safetensors"

    def __init__(self) -> None:
        arrays = {
            "a": np.ones((2, 3), np.float32),
            "b": np.zeros(5, np.int8),
            "c": np.array([True, False]),
            "d": np.zeros((0, 4), np.float64),
        }
        self.seeds = [
            safetensors_bytes(arrays, {"k": "v"}),
            safetensors_bytes({}),
            safetensors_bytes({"s": np.array(1.5)}),
        ]
        self.path = Path(tempfile.mkdtemp(prefix="fluxir-fuzz-")) / "m.safetensors"
        self.count = 0

    def make(self, rng: random.Random) -> bytes:
        data = rng.choice(self.seeds)
        if rng.random() < 0.3:
            return mutate.changed_bytes(data, rng)
        (n,) = struct.unpack("<Q", data[:8])
        header, body = data[8 : 8 + n], data[8 + n :]
        if rng.random() < 0.7:
            table = json.loads(header)
            for _ in range(rng.randint(1, 3)):
                table = mutate.changed_json(table, rng)
            header = json.dumps(table).encode()
        else:
            header = mutate.changed_text(
                header.decode(), rng, ["{", "}", "[" * 50, '"a"', "1e999", "NaN", "-0", "\\ud800", "null"]
            ).encode("utf-8", "replace")
        size = len(header) if rng.random() < 0.9 else mutate.number(rng) % (1 << 64)
        return struct.pack("<Q", size) + header + body

    def read(self, data: bytes) -> None:
        self.count += 1
        if self.count % 8 == 0:
            self.path.write_bytes(data)
            load_safetensors(self.path)
        for array in parse_safetensors(data).values():
            array.sum()


# ---- artifacts -----------------------------------------------------------------------------------------------------


class Artifact(Target):
    """Reads an artifact and loads its code. Digests are made right again in most, as whoever forges a file would."""

    name = "artifact"
    allowed = frozenset({"FX0514"})  # machine code that is none: found when it is loaded

    def __init__(self) -> None:
        def f(x: fx.Tensor, w: fx.Tensor) -> tuple[fx.Tensor, fx.Tensor]:
            return fx.tanh(x @ w) + np.arange(3, dtype="f4"), fx.sum(x)

        path = Path(tempfile.mkdtemp(prefix="fluxir-fuzz-")) / "a.fxb"
        compiled = fx.jit(f, signature=(fx.f32["B", 4], fx.f32[4, 3])).lower().compile("cpu")
        compiled.save(str(path))
        self.code = compiled.code
        self.data = path.read_bytes()

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return b"Z" + mutate.changed_bytes(self.data, rng)
        if rng.random() < 0.15:
            return b"E" + mutate.changed_bytes(self.code, rng)
        return b"Z" + forged(self.data, rng)

    def read(self, data: bytes) -> None:
        if data[:1] == b"E":
            load_object(data[1:])
            return
        read_artifact(data[1:])
        Program.load(data[1:])


def forged(data: bytes, rng: random.Random) -> bytes:
    """An artifact with a member changed, and digests that fit."""
    import hashlib

    with zipfile.ZipFile(io.BytesIO(data)) as z:
        members = {n: z.read(n) for n in z.namelist()}
    table = json.loads(members["manifest.json"])
    choice = rng.randrange(4)
    if choice == 0:
        name = rng.choice([n for n in members if n != "manifest.json"])
        members[name] = mutate.changed_bytes(members[name], rng)
    elif choice == 1:
        members[rng.choice(mutate.TEXTS) or "e"] = b"x"
    else:
        for _ in range(rng.randint(1, 2)):
            table = mutate.changed_json(table, rng)
    if isinstance(table, dict) and isinstance(table.get("members"), dict) and rng.random() < 0.9:
        table["members"] = {n: hashlib.sha256(m).hexdigest() for n, m in members.items() if n != "manifest.json"}
    members["manifest.json"] = json.dumps(table).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for name, content in members.items():
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
        z.comment = hashlib.sha256(members["manifest.json"]).hexdigest().encode()
    return out.getvalue()


TARGETS: dict[str, Callable[[], Target]] = {t.name: functools.cache(t) for t in (Onnx, Text, Safetensors, Artifact)}
"""The targets by name; each is made once."""
