"""Passes on small programs, with the expectation beside the program: `tests/filecheck/*.fx`.

Each file is IR text with a line `# PASSES: cse,dce` and `# CHECK:` lines of LLVM's FileCheck language, matched against
the printed result. Every step is verified and compared on random inputs.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts

import fluxir.ops
import fluxir.passes  # noqa: F401  declares ops and passes
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.passes.manager import PassManager

FILES = sorted(Path(__file__).with_name("filecheck").glob("*.fx"))


def check(expectation: str, output: str, name: str) -> int:
    """The exit status of FileCheck: 0 if `output` is as the `CHECK` lines of `expectation` say."""
    options = Options(match_filename=name, comment_prefixes=["COM", "PASSES"])
    parser = Parser(options, io.StringIO(expectation), *pattern_for_opts(options))
    return int(Matcher(options, FInput(name, output), parser).run())


def run(text: str, name: str) -> str:
    passes = re.search(r"^# PASSES: (.*)$", text, re.M)
    assert passes, f"{name} has no line `# PASSES: ...`"
    verify = "changed" if "plan" in passes[1] else "numeric"
    return print_module(PassManager(passes[1], verify=verify).run(parse_module(text, name)), locations=False)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_filecheck(path: Path) -> None:
    text = path.read_text()
    output = run(text, str(path))
    assert check(text, output, str(path)) == 0, f"{path.name} gave\n{output}"


def test_the_checks_can_fail() -> None:
    text = next(p for p in FILES if p.stem == "cse").read_text()
    output = run(text, "cse.fx")
    assert check(text, output, "cse.fx") == 0
    assert check(text.replace("mul(%0, %0)", "mul(%0, %7)"), output, "cse.fx") != 0
    assert check(text, output.replace("add", "sub"), "cse.fx") != 0


def test_there_are_files() -> None:
    assert len(FILES) >= 6
