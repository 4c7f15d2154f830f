"""The verb ``opt``: run passes over IR text, or go on from a dump."""

from __future__ import annotations

from typing import Any

import click

from ..errors import error
from .common import Output, table, verb
from .files import write_text
from .models import load_entry, load_text_module

__all__ = ["command"]

_HELP = """Run PASSES over FILE and print the IR that comes out.

Without --passes the default tensor-level pipeline runs. With --from DUMP, a file NN-PASS.fx of a dump directory, the
passes behind that one run again, as they are listed in the directory's index.json; FILE is not needed then.
"""


@verb("opt", settings=("target", "verify", "dump_dir"), help=_HELP)
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--passes", metavar="LIST", help='Passes with their options, such as "simplify,cse,fuse[max_ops=8]".')
@click.option(
    "--from",
    "start",
    metavar="DUMP",
    type=click.Path(dir_okay=False),
    help="Go on from this dump, which may have been edited.",
)
@click.option("--output", "-o", "target_file", metavar="FILE", help="Write the IR to this file instead of printing it.")
@click.option("--stats", is_flag=True, help="Print what each pass did to stderr.")
def command(
    output: Output, file: str | None, passes: str | None, start: str | None, target_file: str | None, stats: bool
) -> None:
    from .. import config
    from ..driver import DERIVE, FUSE, SIMPLIFY, as_target, run_passes
    from ..ir.printer import print_module
    from ..passes.manager import resume_point

    if (file is None) == (start is None):
        raise error("FX0904", "give either FILE or --from DUMP", help="`fluxir opt --help` explains both")
    first = 0
    if start is not None:
        if passes is None:
            point = resume_point(start)
            module, first, passes = point.module, point.index, point.remaining
        else:
            module = load_text_module(start)
    else:
        assert file is not None
        module = load_text_module(file) if file.endswith((".fx", ".fxb")) else load_entry(file, None).module
        passes = f"{DERIVE},{SIMPLIFY},{FUSE}" if passes is None else passes
    output.progress("running passes")
    after, records = run_passes(module, passes, as_target(None), dump_dir=config.get().dump_dir, start=first)
    text = print_module(after)
    rows: list[dict[str, Any]] = [record.row() for record in records]
    if target_file is not None:
        write_text(target_file, text)
    if stats and not output.as_json:
        output.clear()
        lines = [
            (
                r["index"],
                r["pass"],
                "changed" if r["changed"] else "-",
                r["ops_before"],
                r["ops_after"],
                f"{r['ms']:.2f}",
            )
            for r in rows
        ]
        click.echo(table(lines, ("", "pass", "", "ops before", "after", "ms"), right=(0, 3, 4, 5)), err=True)
    data = {"changed": after is not module, "passes": rows, "text": text}
    if target_file is None or output.as_json:
        output.result(data, text.rstrip("\n"))
