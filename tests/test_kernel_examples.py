"""The examples of GPU kernels: each gives numpy's answer natively on the CPU and on the virtual GPU, with nothing to find."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "kernels"
NAMES = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem != "common")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import an example as a script would find it."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def get(name: str) -> ModuleType:
        for known in (name, "common"):
            sys.modules.pop(known, None)
        return importlib.import_module(name)

    yield get
    for known in (*NAMES, "common"):
        sys.modules.pop(known, None)


@pytest.mark.parametrize("device", ["cpu", "vgpu:sm_80", pytest.param("vgpu:sm_90", marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_right_on_every_device(load, name: str, device: str) -> None:
    load(name).run(device)  # raises where the result is not numpy's


def test_the_table_of_examples_is_complete() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [n for n in NAMES if f"`{n}.py`" not in text] == []


def test_the_counters_show_what_a_pad_does(load) -> None:
    found = load("transpose").run("vgpu:sm_80", 64, 64)
    assert found["naive"] == (18.0, 0)  # 4 sectors to read a row, 32 to write a column
    sectors, conflicts = found["shared"]
    assert sectors == 4.0 and conflicts == 4 * 32 * 31  # 4 tiles, 32 requests each, 31 extra passes
    assert found["padded"] == (4.0, 0)
