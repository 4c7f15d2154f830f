"""Runs the examples in README.md and docs/*.md, so that none of them can be wrong.

Fences it knows, by their info string:

- ```python            run; the blocks of one page share their names, and line numbers are those of the page
- ```python raises     run; it must end in a FluxError, whose rendered text is the block's output
- ```python file=NAME  written to NAME in the page's folder, not run
- ```console           lines `$ fluxir ...` are run as the command line would, in the page's folder, and must exit with 0
                       (or with N where the line ends in `# exit N`); their stdout and stderr are the block's output
- ```text output       what the block before it wrote: `check` compares, `updated` writes it anew (`make docs`)

Every page starts in an empty folder that holds the examples, with the bundled data beside them as digits.npz, and with
an empty compile cache.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


@dataclass
class Fence:
    """One fenced block: its info string, its lines, and the index of its first line in the page."""

    info: str
    lines: list[str]
    start: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


class ExampleFailed(AssertionError):
    """An example does not do what the page says."""


def documents() -> list[Path]:
    """The pages with examples."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "design").glob("*.md"))]


def fences(page: str) -> list[Fence]:
    found: list[Fence] = []
    lines = page.split("\n")
    at = 0
    while at < len(lines):
        opened = re.fullmatch(r"```(.*)", lines[at])
        if opened is None:
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i] == "```")
        found.append(Fence(opened[1].strip(), lines[at + 1 : end], at + 1))
        at = end + 1
    return found


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)


@contextlib.contextmanager
def importable(module: ModuleType) -> Iterator[None]:
    """The names of a page as a module that is found by its name, as dataclasses need it."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before


@contextlib.contextmanager
def registries_kept(cache: Path) -> Iterator[None]:
    """Ops, passes, templates and error codes that a page declares are forgotten after it, and so is what was compiled with
    them: the key of the compile cache knows a program's ops by name."""
    import fluxir.ops
    import fluxir.passes  # noqa: F401
    from fluxir import config
    from fluxir.errors import CODES
    from fluxir.ir.opdef import REGISTRY
    from fluxir.passes.manager import PASSES
    from fluxir.schedule import lower  # noqa: F401
    from fluxir.schedule.templates import TEMPLATES

    tables: list[dict[str, Any]] = [REGISTRY, PASSES, CODES]
    before, templates = [dict(t) for t in tables], list(TEMPLATES)
    try:
        with config.preserved():
            config.configure(cache_dir=str(cache))
            yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        TEMPLATES[:] = templates


def run_page(path: Path, folder: Path) -> list[tuple[Fence, str]]:
    """Run a page in `folder`; returns each block of output in it with what it should say. Raises `ExampleFailed`."""
    for f in (ROOT / "examples").iterdir():
        if f.is_file():
            shutil.copy(f, folder)
    shutil.copy(ROOT / "fluxir" / "data" / "digits.npz", folder)
    page = path.read_text()
    blocks = fences(page)
    source = [""] * len(page.split("\n"))
    module = ModuleType(path.stem)
    outputs: list[tuple[Fence, str]] = []
    said = ""
    with inside(folder), registries_kept(folder / ".cache"), importable(module):
        for block in blocks:
            where = f"{path.name}:{block.start}"
            words = block.info.split()
            if words[:2] == ["text", "output"]:
                outputs.append((block, said))
            elif words[:1] == ["python"] and len(words) > 1 and words[1].startswith("file="):
                Path(words[1].removeprefix("file=")).write_text(block.text)
            elif words[:1] == ["python"]:
                source[block.start : block.start + len(block.lines)] = block.lines
                Path(f"{path.stem}.py").write_text("\n".join(source))
                said = run_python(block, path.stem, vars(module), where, raises="raises" in words)
            elif words[:1] == ["console"]:
                said = "".join(run_command(line, where) for line in block.lines if line.startswith("$ "))
    return outputs


def run_python(block: Fence, stem: str, names: dict[str, Any], where: str, raises: bool) -> str:
    from fluxir.errors import FluxError

    out = io.StringIO()
    code = compile("\n" * block.start + block.text, f"{stem}.py", "exec")
    try:
        with contextlib.redirect_stdout(out):
            exec(code, names)  # noqa: S102  (our own pages)
    except FluxError as e:
        if raises:
            return e.render(False) + "\n"
        raise ExampleFailed(f"{where}: {e.render(False)}") from e
    except Exception as e:
        raise ExampleFailed(f"{where}: {type(e).__name__}: {e}") from e
    if raises:
        raise ExampleFailed(f"{where}: no error was raised")
    return out.getvalue()


def run_command(line: str, where: str) -> str:
    """What a command wrote. Only `fluxir` is run."""
    from fluxir.cli import main

    command, _, mark = line[2:].partition("  # exit ")
    words = shlex.split(command)
    if words[0] != "fluxir":
        raise ExampleFailed(f"{where}: only fluxir commands are run here, not {words[0]}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main(words[1:])
    if status != int(mark or 0):
        raise ExampleFailed(f"{where}: `{command}` ended with {status}:\n{out.getvalue()}")
    return out.getvalue()


def shown(text: str) -> list[str]:
    """Output as it stands in a page: no blanks at line ends, no empty lines around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n").split("\n")


def check(path: Path, folder: Path) -> None:
    """Run a page and compare its outputs. Raises `ExampleFailed`."""
    for block, said in run_page(path, folder):
        if shown(said) != block.lines:
            raise ExampleFailed(
                f"{path.name}:{block.start}: the output has changed; `make docs` writes it anew. It is now:\n{said}"
            )


def updated(path: Path, folder: Path) -> str:
    """The page with its outputs written anew."""
    lines = path.read_text().split("\n")
    for block, said in reversed(run_page(path, folder)):
        lines[block.start : block.start + len(block.lines)] = shown(said)
    return "\n".join(lines)
