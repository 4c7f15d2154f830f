"""Owns how a model file becomes a program on the command line: a Python model, IR text, or the program inside an
artifact.

Invariants: IR text and artifacts are only read; a Python file is run, and only where its name was given with ``.py``.
This module imports the compiler, so a verb that only runs artifacts must not import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .. import ops as ops
from ..driver import Lowered
from ..errors import error
from ..frontend.loader import ModelFile, load_model, module_entries, require_tensor_level
from ..ir.core import Module
from ..ir.parser import parse_module, read_module
from ..ir.verify import verify_module
from ..runtime.archive import damaged
from ..runtime.artifact import open_artifact
from ..runtime.weights import digest_of

__all__ = ["ENTRY", "TRUST", "load_entry", "load_file", "load_text_module", "lowered", "signature"]

ENTRY = click.option("--entry", metavar="NAME", help="The entry point, where the file has several.")
"""The option ``--entry``, the same for every verb."""


TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Also take lowered IR (a dump of a later stage), whose loads and stores are not checked.",
)
"""The option ``--trust`` of the verbs that make machine code of a file."""


def load_file(path: str, trust: bool = True) -> ModelFile:
    """The entry points of a ``.py``, ``.fx`` or ``.fxb`` file. Without ``trust`` lowered IR is FX0813: verbs that only read
    trust every file, those that make machine code ask.

    Raises FX0808 for another kind of file, FX0316 where there is no entry point, FX0317 where a Python file fails
    while it runs, FX0803 where it cannot be read, and whatever is wrong with the program itself.
    """
    if _suffix(path) != ".fxb":
        return load_model(path, trust=trust)
    module = load_text_module(path)
    if not trust:
        require_tensor_level(module, path)
    return ModelFile(Path(path), module_entries(module))


def load_entry(path: str, entry: str | None, trust: bool = True) -> Lowered:
    """The entry point called ``entry``; without a name the only one, or ``main``. Raises FX0613 where that is not
    there."""
    return lowered(load_file(path, trust), entry)


def lowered(file: ModelFile, entry: str | None, sizes: Mapping[str, int] = {}) -> Lowered:
    """The traced program of one entry point of ``file``, for the ``sizes`` given. Raises FX0604 where they do not fit."""
    traced = file.entry(entry).trace(sizes)
    verify_module(traced.module)  # so that what is wrong with it is not a defect of the first pass
    return Lowered(traced.module, traced.in_tree, traced.out_tree)


def load_text_module(path: str) -> Module:
    """All of the module that an ``.fx`` file holds, or that an artifact was compiled from. Raises FX0808 for other
    files."""
    suffix = _suffix(path)
    if suffix == ".fx":
        return read_module(path)
    if suffix == ".fxb":
        file = open_artifact(path)
        if "program.fx" not in file.texts:
            raise error(
                "FX0808", f"{path} does not hold the program it was compiled from", help="name the model file itself"
            )
        for digest, a in file.weights.items():
            if file.format > 1 and digest_of(a) != digest:
                raise damaged(path, f"the weights {digest} have another digest")
        text = bytes(file.member("program.fx")).decode("utf-8", "replace")
        return parse_module(text, f"{path}/program.fx", resources=file.weights)
    raise error(
        "FX0808",
        f"{path} is neither IR text (.fx) nor an artifact (.fxb)",
        help="`fluxir show FILE.py` prints a model's IR",
    )


def signature(program: Lowered) -> dict[str, Any]:
    """Name, arguments and results of an entry point as JSON-ready data; types are text such as ``f32[B,784]``."""
    func = program.module.entry
    names = func.result_names
    return {
        "name": func.name,
        "arguments": [{"name": arg.name or f"arg{n}", "type": str(arg.type)} for n, arg in enumerate(func.args)],
        "results": [
            {"name": (names[n] if n < len(names) else "") or f"out{n}", "type": str(out.type)}
            for n, out in enumerate(func.outs)
        ],
        "facts": program.module.facts.describe(),
        "ops": func.op_count,
    }


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1]
