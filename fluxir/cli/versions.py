"""Owns the version numbers that ``--version``, ``version``, ``doctor`` and crash files show.

Invariant: asking for a version imports none of the packages asked about.
"""

from __future__ import annotations

import platform

from .. import __version__

__all__ = ["PACKAGES", "fluxir_version", "package_version", "versions"]

PACKAGES = ("numpy", "llvmlite", "lark", "click", "ml_dtypes", "platformdirs")


def fluxir_version() -> str:
    """The version of this package."""
    return __version__


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
