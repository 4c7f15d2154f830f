"""The C launcher of a CUDA bundle: header and source, filled in from the specs of its programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxir.bundle import cpu
from fluxir.bundle.interface import Interface, dims_struct, error_cases, error_enum, size_functions
from fluxir.bundle.launcher import kernel_table, launcher, most_axes
from fluxir.bundle.names import comment, string
from fluxir.bundle.sizes import SizeWriter
from fluxir.bundle.texts import filled

__all__ = ["header", "ptx_name", "source"]

_ALIGNMENT = 256  # of a constant on the device: that of memory of its own


def ptx_name(face: Interface, target: str) -> str:
    return f"{face.prefix}_{target}.ptx"


def _common(face: Interface, version: str) -> dict[str, str]:
    p = face.prefix
    model = f"const {p}_model *model"
    dims = [face.dims_parameter().rstrip(", ")] if face.dims else []
    arrays = [f"{p}_device {t.c}" for t in face.tensors]
    stream = [f"{p}_device workspace", "size_t workspace_bytes", "void *stream"]
    return {
        "PREFIX": p,
        "PREFIX_UPPER": p.upper(),
        "VERSION": version,
        "DIMS_ONLY": face.dims_parameter(more=False),
        "DIMS_NAME": "dims" if face.dims else "NULL",
        "DIMS_ARGUMENT": face.dims_argument(more=False),
        "RUN_PARAMETERS": ", ".join([model, *dims, *arrays, *stream]),
        "HOST_PARAMETERS": ", ".join([model, *dims, *cpu.parameters(face)]),
    }


def header(face: Interface, targets: Sequence[str], version: str) -> str:
    """The text of `PREFIX.h`."""
    words = {
        "PROGRAM": comment(face.program),
        "TARGETS": ", ".join(targets),
        "ERRORS": error_enum(face),
        "DIMS": dims_struct(face),
        "DIMS_RUN": "&dims, " if face.dims else "",
        "SHAPES": cpu.shape_declarations(face),
        "ARGUMENT_DOCS": cpu.argument_docs(face),
    }
    return filled("cuda.h", _common(face, version) | words)


def source(
    face: Interface,
    specs: Sequence[Mapping[str, Any]],
    constants: Sequence[Sequence[tuple[int, int]]],
    version: str,
    weights: bytes,
) -> str:
    """The text of `PREFIX.c`. `constants` of each program: where each lies in the file of weights, and its bytes."""
    names = [t.c for t in face.inputs]
    names += [face.inputs[face.donated[j]].c if j in face.donated else t.c for j, t in enumerate(face.outputs)]
    tensors = [*face.inputs, *face.outputs]
    sized = [face.inputs[face.donated[j]] if j in face.donated else t for j, t in enumerate(face.outputs)]
    nbytes = [f"{face.prefix}_{t.c}_bytes({face.dims_argument(more=False)})" for t in (*face.inputs, *sized)]
    taken = [-1] * len(face.inputs) + [face.donated.get(j, -1) for j in range(len(face.outputs))]
    head = weights[: cpu.HEADER_BYTES]
    words = {
        "RANK": str(max(most_axes(s["host"], tensors) for s in specs)),
        "KERNELS": str(max(1, *[len(s["kernels"]) for s in specs])),
        "CONSTANTS": str(max(1, *[len(c) for c in constants])),
        "ARENAS": filled("arenas.c", {"PREFIX_UPPER": face.prefix.upper()}),
        "SIZES": filled("sizes.c", {}) + "\n" + size_functions(face),
        "SCALARS": filled("scalars.c", {}),
        "PROGRAMS": _programs(face, specs, constants, taken),
        "HEAD": str(len(head)),
        "BYTES": str(len(weights)),
        "HASH": f"{cpu.fnv(head):#x}",
        "INPUTS": str(len(face.inputs)),
        "TENSORS": str(len(tensors)),
        "NULL_CHECKS": cpu.null_checks(face),
        "ARRAYS": "".join(f"{n}, " for n in names),
        "HOSTS": "".join(f"(void *){n}, " for n in names),
        "ARRAY_BYTES": "".join(f"{n}, " for n in nbytes),
        "ERROR_CASES": error_cases(face),
    }
    return filled("cuda.c", _common(face, version) | words)


def _programs(
    face: Interface,
    specs: Sequence[Mapping[str, Any]],
    constants: Sequence[Sequence[tuple[int, int]]],
    taken: Sequence[int],
) -> str:
    out, rows = [], []
    for k, spec in enumerate(specs):
        name = spec["target"]["name"]
        place, table = 0, []
        for offset, nbytes in constants[k]:
            table.append(f"    {{{offset}, {nbytes}, {place}}},\n")
            place += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        w = SizeWriter(face.known, "bad")
        arena = w.value(spec["host"]["functions"][spec["host"]["entry"]]["arena"])
        body = "".join(f"    {line}\n" for line in w.lines)
        out += [
            f"/* {name} */\n",
            kernel_table(spec, k),
            f"static const struct constant constants_{k}[] = {{\n{''.join(table) or '    {0, 0, 0},' + chr(10)}}};\n\n",
            f"static int64_t arena_{k}(const int64_t *s, int *bad)\n{{\n    (void)s, (void)bad;\n{body}",
            f"    return {arena};\n}}\n\n",
            launcher(spec, k, face),
            "\n",
        ]
        capability = int(name.removeprefix("sm_").rstrip("af"))
        same = {"a": 2, "f": 1}.get(name[-1], 0)
        rows.append(
            f"    {{{string(name)}, {string(ptx_name(face, name))}, {capability}, {same}, kernels_{k}, {len(spec['kernels'])}, "
            f"constants_{k}, {len(constants[k])}, {place}, arena_{k}, run_{k}}},\n"
        )
    out.append("/* The best first. */\nstatic const struct target targets[] = {\n" + "".join(rows) + "};\n\n")
    out.append("/* Of each array the argument whose memory it takes, or -1. */\n")
    out.append(f"static const int taken[] = {{{', '.join(map(str, [*taken, -1]))}}};\n")
    return "".join(out)
