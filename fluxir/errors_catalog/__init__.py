"""Owns the catalogue of error codes: one declaration each, with the long text that ``fluxir explain`` prints.

Ranges, one file each: FX01xx IR text and verifier, FX02xx types and shapes, FX03xx frontend, FX04xx passes, FX05xx
schedule, code generation and targets, FX06xx calls at run time, FX07xx devices, FX08xx files and cache, FX09xx
command line, settings and limits. Invariant: importing this package declares every code; nothing here imports the
rest of fluxir.
"""

from __future__ import annotations

from . import _quick as _quick
from ._entry import CODES, CodeInfo, ExitClass, declare

__all__ = ["CODES", "CodeInfo", "ExitClass", "declare"]
