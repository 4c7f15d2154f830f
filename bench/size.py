"""Installed size of the base install: fluxir and, from their installation records, the packages it depends on."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from bench.measure import ROOT, Report


def closure(name: str, seen: set[str]) -> set[str]:
    """The distributions that `name` needs without extras, itself included."""
    key = name.lower().replace("_", "-")
    if key in seen:
        return seen
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return seen
    seen.add(key)
    for requirement in found.requires or []:
        if ";" not in requirement or "extra" not in requirement.split(";", 1)[1]:
            closure(re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0], seen)
    return seen


def installed(name: str) -> int:
    """Bytes of a distribution's files, without compiled Python."""
    files = distribution(name).files or []
    paths = [Path(str(f.locate())) for f in files if "__pycache__" not in str(f)]
    return sum(p.stat().st_size for p in paths if p.is_file())


def ours() -> int:
    """Bytes of what a wheel of fluxir holds: the package and the examples."""
    folders = [ROOT / "fluxir", ROOT / "examples"]
    return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file() and "__pycache__" not in str(p))


def base_requirements() -> list[str]:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[\s;<>=!~\[(]", r, maxsplit=1)[0] for r in listed]


def run(quick: bool) -> Report:
    names: set[str] = set()
    for requirement in base_requirements():
        closure(requirement, names)
    sizes = {"fluxir": ours(), **{n: installed(n) for n in sorted(names)}}
    total = sum(sizes.values())
    rows = [[n, f"{s / 1e6:.1f}"] for n, s in sorted(sizes.items(), key=lambda e: -e[1])] + [
        ["total", f"{total / 1e6:.1f}"]
    ]
    notes = ["files as installed, without compiled Python (__pycache__); Python itself not counted"]
    return Report(
        "Size of the base install", ["package", "MB (10^6 bytes)"], rows, {"bytes": sizes, "total": total}, notes
    )
