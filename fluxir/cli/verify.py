"""The verb ``verify``: is this program well formed, and does compiled code agree with the interpreter?"""

from __future__ import annotations

import os
from typing import Any

import click
import numpy as np

from ..driver import Lowered
from ..errors import FluxError, combine, error
from ..ir.dims import assuming
from ..ir.interp import Interpreter, check_guards
from ..ir.verify import verify_module
from ..passes import numeric as numeric_pass
from ..runtime.artifact import open_artifact
from .arrays import dim_sizes
from .common import Output, table, verb
from .models import load_file, load_text_module, lowered

__all__ = ["command", "compare"]

_HELP = """Verify FILE: digests of an artifact (.fxb), types and structure of IR text (.fx), or a model (.py) through
all stages.

With --numeric every entry point is also compiled for this machine and compared with the numpy interpreter on random
inputs; exit status 4 where they differ. With --reference an ONNX file is run on inputs whose results are known: a folder of
test_data_set_N/input_N.pb and output_N.pb, as models are published with, or a .npz with inputs and results by name.
"""


@verb("verify", settings=("opt_level", "accuracy", "num_threads"), help=_HELP)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--entry", metavar="NAME", help="Only this entry point.")
@click.option("--numeric", is_flag=True, help="Compare compiled code with the interpreter on random inputs.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="A size for --numeric, such as B=32.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of the inputs of --numeric."
)
@click.option("--reference", metavar="PATH", help="Compare an ONNX file's results with those of a folder or .npz file.")
def command(
    output: Output, file: str, entry: str | None, numeric: bool, dims: tuple[str, ...], seed: int, reference: str | None
) -> None:
    sizes = dim_sizes(dims)
    if reference is not None:
        _reference(output, file, reference, sizes)
        return
    if os.path.splitext(file)[1] == ".fxb":
        open_artifact(file).check_all()
    if os.path.splitext(file)[1] in (".fx", ".fxb"):
        verify_module(load_text_module(file))
    model = load_file(file)
    names = list(model.entries) if entry is None else [model.entry(entry).name]
    rows: list[dict[str, Any]] = []
    problems: list[FluxError] = []
    for name in names:
        output.progress(f"verifying {name}")
        try:
            program = lowered(model, name)
            verify_module(program.module)
            stages = program.build("cpu", verify="changed").stages
            row: dict[str, Any] = {"entry": name, "stages": list(stages), "ops": program.module.entry.op_count}
            if numeric:
                row["numeric"] = compare(program, sizes, seed)
            rows.append(row)
        except FluxError as problem:
            problem.notes.append(f"in the entry point {name}")
            problems.append(problem)
    if problems:
        raise combine(problems)

    def text() -> str:
        lines = [f"{row['entry']}: ok, {row['ops']} ops, stages {', '.join(row['stages'])}" for row in rows]
        checks = [
            (
                row["entry"],
                result["name"],
                result["type"],
                "equal" if result["difference"] == 0 else f"{result['difference']:.2e}",
            )
            for row in rows
            for result in row.get("numeric", {}).get("results", [])
        ]
        return "\n".join(lines + ([table(checks, ("entry", "result", "type", "difference"))] if checks else []))

    output.result({"file": file, "ok": True, "entries": rows}, text)


def _reference(output: Output, file: str, reference: str, sizes: dict[str, int]) -> None:
    from .reference import check

    if os.path.splitext(file)[1] != ".onnx":
        raise error("FX0904", f"--reference is for ONNX files, not for {file}")
    output.progress(f"running {file}")
    rows = check(file, reference, sizes)

    def text() -> str:
        return table(
            [(r["set"], r["name"], f"{r['difference']:.2e}") for r in rows], ("reference", "result", "difference")
        )

    output.result({"file": file, "ok": True, "results": rows}, text)


def compare(program: Lowered, given: dict[str, int], seed: int) -> dict[str, Any]:
    """Run a traced program by the interpreter and as compiled code on the same random inputs.

    Returns the sizes used and for every result its largest difference relative to its largest absolute value. Raises
    FX0404 where one is above the tolerance of its dtype (`fluxir.passes.numeric.RTOL`).
    """
    module, func = program.module, program.module.entry
    rng = np.random.default_rng(seed)
    sizes = numeric_pass.choose_sizes(module, func, rng) | given
    check_guards(module, sizes)
    inputs = [numeric_pass.random_input(value, sizes, rng) for value in func.args]
    with assuming(module.facts):
        expected = Interpreter(module, sizes).call(func, inputs)
    found = program.compile("cpu").program.call_flat(inputs)
    names = list(func.result_names) or [""] * len(found)
    results = []
    for n, (want, got, out) in enumerate(zip(expected, found, func.outs)):
        name = names[n] or f"out{n}"
        problem = numeric_pass.difference(np.asarray(want), got, None, name)
        if problem is not None:
            raise error(
                "FX0404",
                f"compiled code and the interpreter disagree on @{func.name}: {problem}",
                labels=[(name, str(out.type))],
                help="this is a defect of fluxir: please report the program",
                notes=[f"sizes {sizes or 'fixed'}, seed {seed}"],
            )
        results.append({"name": name, "type": str(out.type), "difference": _difference(np.asarray(want), got)})
    return {"sizes": sizes, "results": results}


def _difference(want: Any, got: Any) -> float:
    """The largest difference of finite values, relative to the largest absolute one; both are known to agree."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max()) / (float(np.abs(a[finite]).max()) or 1.0)
