"""What surrounds a bundle's source: CMake file, README, the test program and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.bundle.interface import Interface
from fluxir.bundle.names import comment, string
from fluxir.bundle.texts import filled

__all__ = ["TOLERANCE", "Case", "cmake", "readme", "test_data", "test_source"]


@dataclass(frozen=True)
class Case:
    """What the test program runs on. `oracle`: where the outputs come from, as in "fluxir's interpreter computed"."""

    dims: Mapping[str, int]
    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[NDArray[Any]]
    oracle: str


TOLERANCE = {"f16": 1e-2, "bf16": 5e-2, "f32": 1e-4, "f64": 1e-9}
"""What the test program allows, relative to the largest value of a result: other machines sum in another order. Integers and
bools must be equal."""


def cmake(face: Interface, version: str, objects: Sequence[str], libraries: str = "") -> str:
    external = "\n".join(
        f"set_source_files_properties({name} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)" for name in objects
    )
    words = {"PREFIX": face.prefix, "VERSION": version, "EXTERNAL": external, "LIBRARIES": libraries}
    return filled("CMakeLists.txt", words | {"OBJECTS": "".join(" " + name for name in objects)})


def test_source(face: Interface, case: Case, weights: str | None, template: str = "test.c") -> str:
    """The test program. `weights`: what `open` takes."""
    rows = []
    for t, a in zip((*face.inputs, *face.outputs), (*case.inputs, *case.outputs), strict=True):
        rows.append(f"    {{{string(t.name)}, {string(t.dtype)}, {a.nbytes}, {TOLERANCE.get(t.dtype, 0.0)}}},")
    given = [f"(void *)in[{i}]" for i in range(len(face.inputs))]
    given += [f"(void *)out[{j}]" for j in range(len(face.outputs)) if j not in face.donated]
    places = "".join(f"i == {j} ? in[{i}] : " for j, i in face.donated.items())
    dims = ", ".join(str(case.dims[symbol]) for symbol, _ in face.dims)
    arrays = {
        "INPUTS": str(len(face.inputs)),
        "OUTPUTS": str(len(face.outputs)),
        "ARRAYS": "\n".join(rows),
        "DIMS": f"static const {face.prefix}_dims dims = {{{dims}}};\n" if face.dims else "",
    }
    return filled(
        template,
        {
            "PREFIX": face.prefix,
            "PREFIX_UPPER": face.prefix.upper(),
            "DIMS_ARGUMENT": "&dims" if face.dims else "",
            "DIMS_RUN": "&dims, " if face.dims else "",
            "DIMS_HOST": ", &dims" if face.dims else "",
            "RUN_ARGUMENTS": "".join(g + ", " for g in given),
            "HOST_ARGUMENTS": "".join(", " + g for g in given),
            "TAKES": "1" if face.donated else "0",
            "RESULT": f"{places}out[i]",
            "WEIGHTS_EXAMPLE": "NULL" if weights is None else string(weights),
            "COMPARE": filled("arrays.c", arrays) + filled("compare.c", {}),
            "ORACLE": comment(case.oracle),
        },
    )


def test_data(arrays: Sequence[NDArray[Any]]) -> bytes:
    """The file that the test program reads: the bytes of inputs and results, one after the other."""
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def readme(face: Interface, words: Mapping[str, str], files: Mapping[str, str]) -> str:
    rows = "\n".join(f"- `{name}`: {text}" for name, text in files.items())
    return filled("README.md", {"PREFIX": face.prefix, "PROGRAM": comment(face.program), "FILES": rows, **words})
