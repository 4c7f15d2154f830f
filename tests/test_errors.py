"""Errors: the catalogue is complete and well formed, and the rendering is exactly the form users know."""

from __future__ import annotations

import pickle
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fluxir.errors import (
    CODES,
    EXIT_CLASSES,
    DeviceError,
    FluxError,
    InternalError,
    IOFailure,
    LimitError,
    Location,
    NumericMismatch,
    UnsupportedError,
    UsageError,
    UserError,
    combine,
    error,
    register_source,
)
from fluxir.errors_catalog import declare

ROOT = Path(__file__).resolve().parent.parent


def golden(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("\n" * 8 + "x = load()\n\n\n    h = x @ w\n")
    return str(tmp_path / "model.py")


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_the_catalogue_covers_every_range() -> None:
    assert len(CODES) >= 60
    assert {code[2:4] for code in CODES} == {f"{n:02d}" for n in range(1, 13)}


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_has_a_real_text(code: str) -> None:
    info = CODES[code]
    assert info.code == code and info.exit_class in EXIT_CLASSES
    assert 8 <= len(info.title) <= 80 and not info.title.endswith("."), "a title is one short line"
    assert len(info.text) > 60, "explain prints what it means and what to do"
    assert info.text == info.text.strip() and "\t" not in info.text
    assert max(map(len, info.text.splitlines())) <= 120


def test_every_code_that_is_raised_is_declared() -> None:
    """`error("FX...")` with an unknown code would be a KeyError in front of a user."""
    sources = [path for path in (ROOT / "fluxir").rglob("*.py") if "errors_catalog" not in path.parts]
    used = {code for path in sources for code in re.findall(r"\bFX\d{4}\b", path.read_text(encoding="utf-8"))}
    assert used and used <= set(CODES), sorted(used - set(CODES))


# Codes of devices and transforms that are still to come.
RESERVED = {"FX0406", "FX0407"}


def test_every_code_that_is_declared_is_raised() -> None:
    sources = [path for path in (ROOT / "fluxir").rglob("*.py") if "errors_catalog" not in path.parts]
    used = {code for path in sources for code in re.findall(r"\bFX\d{4}\b", path.read_text(encoding="utf-8"))}
    assert set(CODES) - used <= RESERVED, sorted(set(CODES) - used - RESERVED)


def test_texts_name_only_codes_that_exist() -> None:
    for info in CODES.values():
        assert set(re.findall(r"\bFX\d{4}\b", info.text)) <= set(CODES), info.code


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("FX0203", UserError, 1),
        ("FX0501", UsageError, 2),
        ("FX0502", UnsupportedError, 3),
        ("FX0404", NumericMismatch, 4),
        ("FX0109", LimitError, 5),
        ("FX0701", DeviceError, 6),
        ("FX0503", InternalError, 70),
        ("FX0801", IOFailure, 74),
    ],
)
def test_the_catalogue_picks_class_and_status(code: str, kind: type[FluxError], status: int) -> None:
    problem = error(code)
    assert type(problem) is kind and problem.exit_code == status
    assert problem.message == CODES[code].title


def test_unknown_and_repeated_codes_are_refused() -> None:
    with pytest.raises(KeyError, match="FX0000"):
        error("FX0000", "no such code")
    with pytest.raises(ValueError, match="declared twice"):
        declare("FX0203", "again", "user", "text")
    with pytest.raises(ValueError, match="four digits"):
        declare("FX203", "short", "user", "text")


# -- rendering ---------------------------------------------------------------------------------------------------------


def test_the_form_of_the_house_plan(model: str) -> None:
    problem = error(
        "FX0203",
        loc=Location(model, 12, 9),
        labels=[("x", "f32[batch=32, 4]"), ("w", "f32[5, 6]"), ("", "4 (x, axis 1) is not 5 (w, axis 0)")],
        help="w has 5 rows; x would need 5 columns. x comes from model.py:9",
    )
    assert (
        problem.render()
        == str(problem)
        == golden("""
        error[FX0203]: matmul inner dimensions differ
          --> model.py:12:9
           |
        12 |     h = x @ w
           |         ^ x: f32[batch=32, 4]   w: f32[5, 6]   4 (x, axis 1) is not 5 (w, axis 0)
           = help: w has 5 rows; x would need 5 columns. x comes from model.py:9
        """)
    )


def test_second_places_notes_and_help_of_several_lines(model: str) -> None:
    problem = error(
        "FX0203",
        "sizes differ",
        loc=Location(model, 12, 9, "forward"),
        labels=[("x", "f32[4]"), (Location(model, 9, 1), "x comes from here")],
        notes=["first", "second"],
        help="do this\nor that",
    )
    assert problem.render() == golden("""
        error[FX0203]: sizes differ
          --> model.py:12:9, in forward
           |
        12 |     h = x @ w
           |         ^ x: f32[4]
          ::: model.py:9:1
           |
         9 | x = load()
           | ^ x comes from here
           = note: first
           = note: second
           = help: do this
                   or that
        """)


def test_without_a_place_or_a_column(model: str) -> None:
    assert error("FX0604", "2 arguments needed", labels=[("x", "f32[4]")]).render() == golden("""
        error[FX0604]: 2 arguments needed
          | x: f32[4]
        """)
    assert error("FX0604", "no", loc=Location(model, 9), labels=[("x", "f32[4]")]).render() == golden("""
        error[FX0604]: no
         --> model.py:9
          |
        9 | x = load()
          | x: f32[4]
        """)
    assert error("FX0604", "no", loc=Location("missing.py", 7, 3)).render() == golden("""
        error[FX0604]: no
         --> missing.py:7:3
        """)


def test_a_code_s_hint_is_the_help_where_none_is_given() -> None:
    assert CODES["FX0601"].hint and error("FX0601").help == CODES["FX0601"].hint
    assert error("FX0601", help="precise").help == "precise"
    for info in CODES.values():
        assert len(info.hint) <= 110 and not info.hint.endswith(".") and "\n" not in info.hint, info.code


def test_several_errors_in_one_go() -> None:
    together = combine(
        [error("FX0604", "x is wrong"), combine([error("FX0607", "y is wrong"), error("FX0607", "z too")])]
    )
    assert together.code == "FX0604" and together.exit_code == 1
    assert together.render() == "error[FX0604]: x is wrong\n\nerror[FX0607]: y is wrong\n\nerror[FX0607]: z too"


def test_colour_only_when_asked(model: str) -> None:
    problem = error("FX0203", loc=Location(model, 12, 9), help="h")
    assert "\x1b" not in problem.render()
    painted = problem.render(color=True)
    assert "\x1b[1;31merror[FX0203]\x1b[0m" in painted
    assert re.sub(r"\x1b\[[\d;]*m", "", painted) == problem.render()


def test_registered_sources_are_shown_and_bounded() -> None:
    register_source("<string>", "func @f() {\n  %1 = add(%0)\n}")
    shown = error("FX0103", "m", loc=Location("<string>", 2, 12)).render()
    assert shown.splitlines()[3:5] == ["2 |   %1 = add(%0)", "  |            ^"]
    for number in range(100):
        register_source(f"<{number}>", "x")
    assert error("FX0103", "m", loc=Location("<string>", 2, 12)).render().count("|") == 0


def test_a_location_cannot_make_us_print_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY\n")
    assert "PRIVATE" not in error("FX0103", "m", loc=Location(str(secret), 1, 1)).render()


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "evil.py"
    file.write_text("x = '\x1b]0;title\x07\u202e'\n")
    shown = error(
        "FX0103", "m\x1b[2J", loc=Location(str(file), 1, 5), labels=[("n\x9b", "t\x00")], help="\x1bc"
    ).render()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_tabs_wide_characters_and_long_lines_keep_the_caret_in_place(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("\ty = 1\n\u540d = x @ w\n" + "a" * 1000 + "B" + "c" * 1000 + "\n")
    lines = error("FX0103", "m", loc=Location(str(file), 1, 2)).render().splitlines()
    assert lines[3].index("y") == lines[4].index("^")
    lines = error("FX0103", "m", loc=Location(str(file), 2, 5)).render().splitlines()
    assert lines[4].index("^") == lines[3].index("x") + 1, "the character before takes two columns"
    lines = error("FX0103", "m", loc=Location(str(file), 3, 1001)).render().splitlines()
    assert lines[3].index("B") == lines[4].index("^") and len(lines[3]) < 220


@pytest.mark.parametrize(
    "place", [Location("", 0), Location("x.py", -5, -5), Location("\0.py", 1, 1), Location("d.py", 10**9, 10**9)]
)
def test_rendering_never_fails(place: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.py").mkdir()
    (tmp_path / "x.py").write_bytes(b"\xff\xfe\x00")
    assert (
        error("FX0103", "", loc=place, labels=[(place, "")], notes=[""], help="").render().startswith("error[FX0103]")
    )


def test_errors_cross_process_borders_and_become_json(model: str) -> None:
    problem = combine(
        [
            error("FX0203", "a", loc=Location(model, 1, 2, "f"), labels=[("x", "t")], notes=["n"], help="h"),
            error("FX0203", "b"),
        ]
    )
    again = pickle.loads(pickle.dumps(problem))  # noqa: S301 (our own bytes)
    assert type(again) is UserError and again.render() == problem.render()
    data = problem.as_dict()
    assert data["code"] == "FX0203" and data["exit_code"] == 1 and data["help"] == "h"
    assert data["location"] == {"file": model, "line": 1, "col": 2, "func": "f"}
    assert data["labels"] == [{"name": "x", "text": "t"}] and [m["message"] for m in data["more"]] == ["b"]


def test_a_static_argument_must_be_hashable() -> None:
    import fluxir as fx

    f = fx.jit(lambda x, *, axes: fx.sum(x, axis=tuple(axes)), static_argnames=("axes",))
    assert float(f(np.ones((2, 3), "f4"), axes=(0, 1))) == 6
    with pytest.raises(FluxError, match="FX0318") as e:
        f(np.ones((2, 3), "f4"), axes=[0, 1])
    assert "'axes' is a list" in e.value.message
