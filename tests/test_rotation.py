"""The rotation of the deep tests in `conftest.py`: over N days each of them runs exactly once, and by name always."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

MADE = """
import pytest
@pytest.mark.deep
@pytest.mark.parametrize("case", range(20))
def test_long(case): pass
def test_short(): pass
"""


@pytest.fixture(scope="module")
def rotation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rotation_under_test", Path(__file__).with_name("conftest.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_as_many_days_as_groups_run_every_test_once(rotation: ModuleType) -> None:
    names = [f"tests/test_made.py::test_long[{case}]" for case in range(200)]
    for groups in (1, 3, 8):
        for first in (1, 359):  # the second span runs to the end of the year
            due = [name for day in range(first, first + groups) for name in names if rotation.is_due(name, groups, day)]
            assert sorted(due) == sorted(names)


def test_the_share_is_read(rotation: ModuleType) -> None:
    assert [rotation.deep_groups(share) for share in ("all", "none", "1/8", "1", "0.25")] == [1, 0, 8, 1, 4]
    for share in ("2/3", "0", "often", "1/0", "-1/2"):
        with pytest.raises(pytest.UsageError):
            rotation.deep_groups(share)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--deep-share=none"], 1), (["--deep-share=none", "test_made.py::test_long[3]"], 1), (["-m", "deep"], 20)],
)
def test_options_choose_what_runs(options: list[str], expected: int, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = deep: long\n")
    (tmp_path / "test_made.py").write_text(MADE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert f"{expected} passed" in done.stdout
