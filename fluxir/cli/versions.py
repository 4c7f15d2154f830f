"""Owns the version numbers that ``--version``, ``version``, ``doctor`` and crash files show.

Invariant: asking for a version imports none of the packages asked about.
"""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["PACKAGES", "fluxir_version", "package_version", "versions"]

PACKAGES = ("numpy", "llvmlite", "lark", "click", "ml_dtypes", "platformdirs")


def fluxir_version() -> str:
    """The version of this package; read from pyproject.toml in a source tree that was never installed."""
    installed = package_version("fluxir")
    if installed is not None:
        return installed
    import tomllib

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def package_version(name: str) -> str | None:
    """The installed version of ``name``, None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """fluxir, Python and the packages of the base install, by name."""
    packages = {name: package_version(name) or "not installed" for name in PACKAGES}
    return {"fluxir": fluxir_version(), "python": platform.python_version(), **packages}
