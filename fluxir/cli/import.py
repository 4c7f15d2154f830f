"""The verb ``import``: a model of another system as IR text, which every other verb takes."""

from __future__ import annotations

import os
from typing import Any

import click

from ..errors import error
from .arrays import dim_sizes
from .common import Output, bytes_text, table, verb
from .files import write_text

__all__ = ["command"]

_HELP = """Read FILE (.onnx) and write its program as IR text, OUT (default: NAME.fx).

The text is complete: weights are constants of it. With --weights-as-args they are its first arguments, in the order of
their names, and are written beside it as NAME.safetensors: a program that can be differentiated and trained. Example:

fluxir import model.onnx -o model.fx --dim batch=8
"""


@verb("import", help=_HELP)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--output", "-o", "out", metavar="OUT", help="The IR text to write (.fx).")
@click.option(
    "--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="Fix a size that the file leaves open, such as batch=8."
)
@click.option("--weights-as-args", is_flag=True, help="Make arguments of the trainable weights.")
def command(output: Output, file: str, out: str | None, dims: tuple[str, ...], weights_as_args: bool) -> None:
    if os.path.splitext(file)[1] != ".onnx":
        raise error("FX0808", f"{file} is not a model to import", help="name an .onnx file")
    path = out if out is not None else os.path.splitext(os.path.basename(file))[0] + ".fx"
    if not path.endswith(".fx"):
        raise error("FX0906", f"the program is to be called {path!r}", help="give it a name that ends in .fx")
    output.progress(f"reading {file}")
    module, weights = _read(file, dim_sizes(dims), weights_as_args)
    from ..ir.printer import print_module

    write_text(path, print_module(module))
    files = [path]
    if weights_as_args:
        from ..runtime.safetensors import save_safetensors

        files.append(path.removesuffix(".fx") + ".safetensors")
        save_safetensors(files[-1], weights)
    entry = module.entry
    data: dict[str, Any] = {
        "file": file,
        "files": {name: os.path.getsize(name) for name in files},
        "ops": entry.op_count,
        "arguments": [{"name": a.name, "type": str(a.type)} for a in entry.args],
        "results": [{"name": n, "type": str(v.type)} for n, v in zip(entry.result_names, entry.outs)],
        "facts": module.facts.describe(),
    }

    def text() -> str:
        rows = [(f"  {name}", bytes_text(size)) for name, size in data["files"].items()]
        kind = f", {len(weights)} weights as arguments" if weights_as_args else ""
        return "\n".join([f"{file}: {entry.op_count} ops{kind}", table(rows, right=(1,))])

    output.result(data, text)


def _read(file: str, sizes: dict[str, int], weights_as_args: bool) -> tuple[Any, dict[str, Any]]:
    """The program of a file, with arguments and results named as there, and its weights."""
    from ..frontend import onnx
    from ..frontend.trace import trace

    model = onnx.load(file, dims=sizes, weights_as_args=weights_as_args)
    known = _symbols(onnx.load(file).inputs.values())
    if unknown := sorted(set(sizes) - known):
        raise error(
            "FX0604",
            f"there is no open size {unknown[0]!r} in {file}",
            help=f"there are: {', '.join(sorted(known)) or 'none'}",
        )
    given = [model.weights] if weights_as_args else []
    t = trace(model, [*given, *model.inputs.values()], name=onnx.entry_name(file))
    names = [*sorted(model.weights)] if weights_as_args else []
    return onnx.renamed(t.module, [*names, *model.inputs], model.outputs), model.weights


def _symbols(types: Any) -> set[str]:
    from ..ir.dims import symbols_of

    return {s for t in types if t is not None for d in t.shape for s in symbols_of(d)}
