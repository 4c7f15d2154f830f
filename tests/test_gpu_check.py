"""`bench.gpu_check`, as it runs on a machine with a GPU, on the virtual one: its quick form, and what it says of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import gpu_check, gpu_tasks
from bench.measure import Report


def test_quick(tmp_path: Path, capsys: Any) -> None:
    assert gpu_check.main(["--device", "vgpu:sm_80", "--quick", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "gpu_check.json").read_text())["data"]
    assert set(data["checks"]) == {"samples of ops", "random programs", "models and training steps", "tasks"}
    assert all(c["count"] and not c["failures"] for c in data["checks"].values())
    assert set(data["tasks"]) == {t.name for t in gpu_tasks.TASKS}
    assert all(s > 0 for t in data["tasks"].values() for s in t["bounds"].values())
    shown = (tmp_path / "gpu_check.md").read_text()
    assert "bound H100 SXM" in shown and "matmul f16" in shown and "sanitizer on" in shown


def test_a_wrong_result_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    task = gpu_tasks.Task(
        "wrong",
        lambda x: x * 2,
        lambda x: x * 3,
        lambda rng, size: [np.ones(size, np.float32)],
        (4,),
        (4,),
        lambda a: (4, 32),
    )
    monkeypatch.setattr(gpu_check, "TASKS", (task,))
    part = gpu_check.speed("vgpu", True, Report("t", gpu_check.columns("vgpu"), []))
    assert part.count == 1 and part.failures[0].startswith("wrong: ")


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    assert gpu_check.main(["--device", "vgpu:sm_99", "--out", str(tmp_path)]) == 2
    assert gpu_check.main(["--device", "cuda:77", "--out", str(tmp_path)]) == 6
    assert not list(tmp_path.iterdir())
