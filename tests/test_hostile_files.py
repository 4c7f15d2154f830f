"""Files of `tests/hostile`: each is refused with its code, soon, in little memory, and opens nothing outside of its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import FILES, __main__, artifacts, onnx_graphs, onnx_parts, safetensors, text  # noqa: F401

KINDS = sorted({Path(name.partition("-")[0]).name for name in FILES})


def test_there_are_many_and_each_says_what_it_attacks() -> None:
    assert len(FILES) > 200 and KINDS == ["fx", "fxb", "onnx", "safetensors"]
    assert all(not f.attacks[0].islower() and f.attacks.endswith(".") for f in FILES.values())
    assert len({f.attacks for f in FILES.values()}) > 190


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_refused(kind: str) -> None:
    names = [n for n in FILES if n.startswith(f"{kind}-")]
    command = [sys.executable, "-m", "tests.hostile", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=600)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["name"] for f in found] == names, done.stderr[-3000:]
    wrong = []
    for f in found:
        short = 0 < len(f["message"]) < 8000 and "Traceback" not in f["message"]
        clean = not any(ord(c) < 32 and c != "\n" for c in f["message"])
        if f["code"] != FILES[f["name"]].code or f["opened"] or f["mib"] > 256 or not short or not clean:
            wrong.append(f)
        assert f["seconds"] < __main__.SECONDS + 0.5  # whoever takes more is ended
    assert not wrong, json.dumps(wrong, indent=1)


def test_the_watch_sees_what_is_opened_elsewhere(tmp_path: Path) -> None:
    """The test of the test: a reader that opens a file above the folder, or that takes its time, is found."""
    code = (
        "import sys, tests.hostile.__main__ as m\nfrom pathlib import Path\n"
        "def read(path):\n    open('/etc/hostname', 'rb') if {case} else [None for _ in iter(int, 1)]\n"
        "m.read = read\nprint(m.outcome(Path(sys.argv[1])))"
    )
    for case, said in ((1, "/etc/hostname"), (0, "'code': 'status -")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(case=case), str(tmp_path / "x.onnx")], capture_output=True, text=True,
            cwd=Path(__file__).parents[1], timeout=100,
        )  # fmt: skip
        assert said in done.stdout, done.stdout + done.stderr
