"""`bench.gpu_check --device cuda` as it will run on a machine with a GPU: PyCUDA, arrays on the device, times by its events."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_check, gpu_tasks


def test_quick(driver_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver_of("sm_80")
    monkeypatch.setattr(gpu_check, "TASKS", gpu_tasks.TASKS[:2])
    monkeypatch.setattr(gpu_check, "QUICK_OPS", 40)
    assert gpu_check.main(["--device", "cuda", "--quick", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "gpu_check.json").read_text())["data"]
    assert all(c["count"] and not c["failures"] for c in data["checks"].values())
    assert all(t["fluxir"] > 0 for t in data["tasks"].values())
    assert "driven by PyCUDA" in (tmp_path / "gpu_check.md").read_text()
