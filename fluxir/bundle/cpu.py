"""The C wrapper of a CPU bundle: header and source, filled in from the specs of its programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxir.bundle.features import feature_rows, feature_source
from fluxir.bundle.interface import (
    Interface,
    Tensor,
    dims_struct,
    error_cases,
    error_enum,
    shape_parameter,
    size_functions,
)
from fluxir.bundle.names import comment, string
from fluxir.bundle.objects import code_symbol
from fluxir.bundle.sizes import SizeWriter
from fluxir.bundle.texts import filled
from fluxir.runtime import pool_code

__all__ = [
    "HEADER_BYTES",
    "argument_docs",
    "fnv",
    "header",
    "null_checks",
    "parameters",
    "shape_declarations",
    "source",
]

HEADER_BYTES = 1 << 16
"""How much of a weights file the wrapper looks at: the names in its head are digests of the contents."""


def parameters(face: Interface) -> list[str]:
    """The parameters of `run`, sizes and tensors: arguments that results are written into are not const."""
    taken = set(face.donated.values())
    given = [f"{'' if i in taken else 'const '}{t.type} *{t.c}" for i, t in enumerate(face.inputs)]
    return [*given, *[f"{t.type} *{t.c}" for t in face.results]]


def _run_parameters(face: Interface) -> str:
    model = f"const {face.prefix}_model *model"
    dims = [face.dims_parameter().rstrip(", ")] if face.dims else []
    return ", ".join([model, *dims, *parameters(face), "void *workspace", "size_t workspace_bytes"])


def shape_declarations(face: Interface) -> str:
    """Declarations of the functions that tell a tensor's shape and bytes."""
    p = face.prefix
    rows = ["/* The shape and the bytes of each array, for some sizes; negative where these do not fit. */"]
    for t in face.tensors:
        rows.append(f"{face.macro('API')} int {p}_{t.c}_shape({face.dims_parameter()}{shape_parameter(t)});")
        rows.append(f"{face.macro('API')} int64_t {p}_{t.c}_bytes({face.dims_parameter(more=False)});")
    return "\n".join(rows) + "\n"


def argument_docs(face: Interface) -> str:
    """A comment line for each array."""
    given = {i: face.outputs[j] for j, i in face.donated.items()}
    rows = []
    for i, t in enumerate(face.inputs):
        also = f", and afterwards the result {comment(given[i].name)}" if i in given else ""
        rows.append(f" *   {t.c}: {_described(t)}{also}")
    rows += [f" *   {t.c}: {_described(t)}, a result" for t in face.results]
    return "\n".join(rows) or " *   no arrays"


def _described(t: Tensor) -> str:
    name = f" ({comment(t.name)} in the model)" if t.name != t.c else ""
    bits = {"f16": ", the bits of IEEE binary16", "bf16": ", the upper half of an f32", "bool": ", 0 or 1"}.get(
        t.dtype, ""
    )
    return comment(t.shown) + name + bits


def _common(face: Interface, version: str) -> dict[str, str]:
    return {
        "PREFIX": face.prefix,
        "PREFIX_UPPER": face.prefix.upper(),
        "VERSION": version,
        "DIMS_ONLY": face.dims_parameter(more=False),
        "DIMS_NAME": "dims" if face.dims else "NULL",
        "RUN_PARAMETERS": _run_parameters(face),
    }


def header(face: Interface, targets: Sequence[str], version: str, embedded: bool) -> str:
    """The text of `PREFIX.h`."""
    file = f"{face.prefix}.safetensors"
    return filled(
        "cpu.h",
        _common(face, version)
        | {
            "PROGRAM": comment(face.program),
            "TARGETS": ", ".join(targets),
            "ERRORS": error_enum(face),
            "DIMS": dims_struct(face),
            "DIMS_EXAMPLE": "&dims" if face.dims else "",
            "DIMS_RUN": "&dims, " if face.dims else "",
            "WEIGHTS_EXAMPLE": "NULL" if embedded else string(file),
            "WEIGHTS_DOC": "null: they are in the object file."
            if embedded
            else f"the path of {file}, which is mapped.",
            "SHAPES": shape_declarations(face),
            "ARGUMENT_DOCS": argument_docs(face),
        },
    )


def source(
    face: Interface,
    specs: Sequence[Mapping[str, Any]],
    numbers: Sequence[Sequence[int]],
    offsets: Sequence[Sequence[int]],
    version: str,
    weights: bytes,
    embedded: bool,
    machine: str,
) -> str:
    """The text of `PREFIX.c`. `numbers` and `offsets` of each program: our number of each of its errors, and where its
    constants lie in the weights."""
    recursive = any(s.get("recursive") for s in specs)
    tensors = len(face.inputs) + len(face.outputs)
    constants = max(1, *[len(o) for o in offsets])
    defines = f"#define ALIGNMENT 64\n#define TENSORS {tensors}\n#define CONSTANTS {constants}\n\n"
    return filled(
        "cpu.c",
        _common(face, version)
        | {
            "ARENAS": filled("arenas.c", {"PREFIX_UPPER": face.prefix.upper()}),
            "SIZES": filled("sizes.c", {}) + "\n" + size_functions(face),
            "FEATURES": feature_source(machine),
            "TARGET_TABLES": defines + _target_tables(face, specs, numbers, offsets, machine),
            "POOL_BYTES": str(pool_code.STATE_BYTES),
            "POOL_EPOCH": str(pool_code.EPOCH),
            "POOL_WORKERS": str(pool_code.WORKERS),
            "POOL_STOP": str(pool_code.STOP),
            "MAX_THREADS": str(pool_code.MAX_THREADS),
            "WEIGHTS": _weights(face, weights, embedded),
            "NULL_CHECKS": null_checks(face),
            "ARGUMENTS": _arguments(face),
            "STACK": filled("stack.c", {}) if recursive else "",
            "SET_STACK": "    context.stack = stack_limit();" if recursive else "",
            "ERROR_CASES": error_cases(face),
        },
    )


def _target_tables(
    face: Interface, specs: Sequence[Mapping[str, Any]], numbers: Any, offsets: Any, machine: str
) -> str:
    out, rows = [], []
    order = face.symbols
    for k, spec in enumerate(specs):
        symbol = code_symbol(face.prefix, k)
        w = SizeWriter(face.known, "bad")
        arena = w.value(spec["arena"])
        body = "\n".join(["    (void)s;", "    (void)bad;", *["    " + line for line in w.lines]])
        tables = {
            "features": (
                "struct feature",
                feature_rows(machine, spec["target"]["features"]),
                len(spec["target"]["features"]),
            ),
            "symbols": ("int", ", ".join(str(order.index(s)) for s in spec["symbols"]), len(spec["symbols"])),
            "errors": ("int", ", ".join(map(str, numbers[k])), len(numbers[k])),
            "offsets": ("uint64_t", ", ".join(f"{o}u" for o in offsets[k]), len(offsets[k])),
        }
        out.append(f"extern entry {symbol};\n")
        for name, (kind, row, _) in tables.items():
            out.append(f"static const {kind} {name}_{k}[] = {{{row or '0'}}};\n".replace("{{0}}", "{{0, 0}}"))
        out.append(f"\nstatic int64_t arena_{k}(const int64_t *s, int *bad)\n{{\n{body}\n    return {arena};\n}}\n\n")
        rows.append(
            f"    {{{string(spec['target']['name'])}, features_{k}, {tables['features'][2]}, {symbol}, arena_{k}, symbols_{k}, "
            f"{tables['symbols'][2]}, errors_{k}, {tables['errors'][2]}, offsets_{k}, {tables['offsets'][2]}}},\n"
        )
    return "".join(out) + "/* The best first. */\nstatic const struct target targets[] = {\n" + "".join(rows) + "};\n"


def _weights(face: Interface, weights: bytes, embedded: bool) -> str:
    words = {"PREFIX": face.prefix, "PREFIX_UPPER": face.prefix.upper()}
    if embedded:
        extern = f"extern const char {face.prefix}_weights[];\n" if weights else ""
        return filled("embedded.c", words | {"EXTERN": extern, "PLACE": f"{face.prefix}_weights" if weights else '""'})
    head = weights[:HEADER_BYTES]
    return filled("mapped.c", words | {"BYTES": str(len(weights)), "HEAD": str(len(head)), "HASH": f"{fnv(head):#x}"})


def fnv(data: bytes) -> int:
    """The 64-bit FNV-1a hash (Fowler, Noll, Vo), which templates/mapped.c computes too: it tells files apart, no more."""
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & (1 << 64) - 1
    return h


def null_checks(face: Interface) -> str:
    """A null pointer is an error but for an array without elements."""
    rows = []
    w = SizeWriter(face.known)
    for t in face.tensors:
        count = w.product(t.shape)
        rows.append(f"    if (!{t.c} && {count} != 0) return {face.macro('ERROR_ARGUMENT')};")
    return "\n".join(["    " + line for line in w.lines] + rows)


def _arguments(face: Interface) -> str:
    names = [t.c for t in face.inputs]
    names += [face.inputs[face.donated[j]].c if j in face.donated else t.c for j, t in enumerate(face.outputs)]
    return "\n".join(f"    arguments[{i}] = (void *){name};" for i, name in enumerate(names))
