"""The ONNX backend suite (of the package onnx) as cases for us, and what counts as a pass, a refusal, or a wrong answer."""

from __future__ import annotations

import functools
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.embed import lower_function
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.onnx.elements import ELEMENTS
from fluxir.frontend.onnx.model import Model, parse
from fluxir.ir.interp import interpret
from fluxir.onnx import SIZES, fixed_choices

REFUSALS = {"FX1202", "FX1203", "FX1205", "FX1208", "FX0230"}

# Answers that no definition fixes: drawn at random. And rows of bf16 arithmetic whose every step the reference rounds.
RANDOM = re.compile(r"bernoulli|training_dropout(_default)?(_mask)?$|RandomUniform|RandomNormal")


@dataclass
class Case:
    """A model with inputs and the outputs that it must give."""

    name: str
    model: bytes
    sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@functools.cache
def cases() -> list[Case]:
    """All cases that need no download."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [c for c in collect_testcases(None) if c.model is not None]
    out = []
    for c in found:
        sets = [([plain(v) for v in i], [plain(v) for v in o]) for i, o in c.data_sets]
        out.append(Case(c.name, c.model.SerializeToString(), sets, c.rtol, c.atol))
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        for c in load_model_tests(kind=kind):
            with open(os.path.join(c.model_dir, "model.onnx"), "rb") as f:
                out.append(Case(c.name, f.read(), stored(c.model_dir), c.rtol, c.atol))
    return out


def stored(folder: str) -> list[tuple[list[Any], list[Any]]]:
    """The data sets of a case that lies in a folder."""
    import onnx

    model = onnx.load(os.path.join(folder, "model.onnx"))
    given = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in given]
    sets = []
    while os.path.isdir(data := os.path.join(folder, f"test_data_set_{len(sets)}")):
        sets.append((read(data, "input", inputs), read(data, "output", model.graph.output)))
    return sets


def read(folder: str, kind: str, infos: Any) -> list[Any]:
    import onnx

    messages = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    out = []
    for n, info in enumerate(infos):
        path = os.path.join(folder, f"{kind}_{n}.pb")
        if not os.path.exists(path):
            break
        which = info.type.WhichOneof("value")
        message = messages.get(which, onnx.TensorProto)()
        with open(path, "rb") as f:
            message.ParseFromString(f.read())
        if which == "sequence_type":
            out.append(plain(onnx.numpy_helper.to_list(message)))
        elif which == "optional_type":
            out.append(plain(onnx.numpy_helper.to_optional(message)))
        else:
            out.append(plain(message))
    return out


def plain(x: Any) -> Any:
    """Arrays; numbers of types that are only stored come in what carries them here."""
    import onnx

    if x is None:
        return None
    if isinstance(x, list | tuple):
        return tuple(plain(v) for v in x)
    if isinstance(x, onnx.TensorProto):
        x = onnx.numpy_helper.to_array(x)
    a = np.asarray(x)
    if a.dtype.name.startswith(("float8", "float4")) or a.dtype.name in ("int4", "uint4", "int2", "uint2"):
        narrow = a.dtype.name.replace("float8_", "float8").replace("float4_", "float4").removesuffix("fnu")
        for e in ELEMENTS.values():
            if e.narrow and e.name.removesuffix("fn") == narrow.removesuffix("fn") and e.carrier is not None:
                return a.astype(np.float32).astype(e.carrier.numpy)
    return a


def outcome(case: Case, compiled: bool = False) -> str:
    """`pass`, `refused: CODE ...`, or what is wrong."""
    try:
        model = Model(parse(case.model, case.name), case.name)
        for inputs, wanted in case.sets:
            got = run(model, tuple(inputs), compiled)
            got = (got,) if len(wanted) == 1 else got
            for g, w in zip(got, wanted, strict=True):
                if (difference := differs(g, w, case)) is not None:
                    return f"wrong: {difference}"
    except FluxError as e:
        return f"{'refused' if e.code in REFUSALS else 'error'}: {e.code} {e.message}"
    return "pass"


def run(model: Model, inputs: tuple[Any, ...], compiled: bool) -> Any:
    """The outputs by the interpreter or by compiled code, with the inputs fixed that decide shapes (as `fx.onnx` does)."""
    choices = fixed_choices(inputs)
    for level, fixed in enumerate(choices):
        rest = [a for a, f in zip(inputs, fixed, strict=True) if not f]

        def call(*given: Any, fixed: tuple[bool, ...] = fixed) -> Any:
            left = iter(given)
            return model(*[a if f else next(left) for a, f in zip(inputs, fixed, strict=True)])

        try:
            lowered = lower_function(call, *rest)
        except FluxError as e:
            if e.code not in SIZES or level == len(choices) - 1:
                raise
            continue
        if compiled:
            return lowered.compile(cache=False)(*rest)
        assert lowered.out_tree is not None
        return lowered.out_tree.unflatten(list(interpret(lowered.module, tree.flatten(tuple(rest))[0])))
    raise AssertionError


def differs(got: Any, wanted: Any, case: Case) -> str | None:
    if isinstance(wanted, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(wanted):
            return "a sequence of another length"
        return next((d for g, w in zip(got, wanted, strict=True) if (d := differs(g, w, case)) is not None), None)
    if wanted is None:
        return None if got is None else "something where nothing was wanted"
    got = np.asarray(got)
    if got.shape != wanted.shape:
        return f"shape {got.shape}, not {wanted.shape}"
    if got.dtype != wanted.dtype:
        return f"dtype {got.dtype}, not {wanted.dtype}"
    # A result of 8 or 11 bits of precision may differ in its last one.
    rtol = max(case.rtol, {"bfloat16": 8e-3, "float16": 2e-3}.get(wanted.dtype.name, 0))
    atol = max(case.atol, {"bfloat16": 4e-3, "float16": 1e-3, "float32": 4e-6}.get(wanted.dtype.name, 0))
    x, y = got.astype(np.float64), wanted.astype(np.float64)
    return None if np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True) else f"differs by {np.nanmax(np.abs(x - y))}"
