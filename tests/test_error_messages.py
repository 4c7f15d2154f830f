"""Error messages as users see them: each `golden/errors/*.case` holds a program that fails and the exact message.

A case is Python source, a line of dashes, and the expected rendering. The source is written to `model.py` and run as a user
would run it; what it raises must be a `FluxError`. To accept new messages after looking at them:
FLUXIR_TEST_UPDATE=1 python -m pytest tests/test_error_messages.py
"""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path

import pytest

from fluxir.errors import CODES, FluxError

CASES = sorted((Path(__file__).resolve().parent / "golden" / "errors").glob("*.case"))
LINE = "-" * 100 + "\n"
UPDATE = os.environ.get("FLUXIR_TEST_UPDATE") == "1"
# Errors of a file, of a call from outside any trace (Python's traceback shows its line) or of a name have no line to show.
WITHOUT_LINE = re.compile(r"FX(0303-jit|0335|0316|0402|0501|0512|06\d\d|08\d\d|09\d\d)")


def message_of(source: str) -> FluxError:
    """What running ``source`` as model.py raises."""
    Path("model.py").write_text(source, encoding="utf-8")
    with pytest.raises(FluxError) as caught:
        runpy.run_path("model.py", run_name="model")
    return caught.value


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_message(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, dashes, expected = case.read_text(encoding="utf-8").partition(LINE)
    problem = message_of(source)
    shown = problem.render().replace(str(tmp_path) + os.sep, "") + "\n"
    if UPDATE:
        case.write_text(source + LINE + shown, encoding="utf-8")
        return
    assert dashes, "no expectation yet: run once with FLUXIR_TEST_UPDATE=1"
    assert shown == expected
    assert problem.code == case.stem[:6] and problem.code in CODES


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_message_is_helpful(case: Path) -> None:
    """Code, the user's own line under an arrow, and a way out."""
    source, _, expected = case.read_text(encoding="utf-8").partition(LINE)
    code = case.stem[:6]
    assert expected.startswith(f"error[{code}]: ")
    if not WITHOUT_LINE.match(case.stem):
        assert re.search(r"^ *--> (\w+\.py|<\w+>):\d+", expected, re.MULTILINE), "the message names the place"
        shown = re.search(r"^ *\d+ \| (.*)$", expected, re.MULTILINE)
        assert shown and shown[1].strip() in source, "the message shows the user's line"
    assert "= help: " in expected, "the message says what to do"


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40 and len({case.stem[:6] for case in CASES}) >= 30
