"""Owns the catalogue of error codes: one declaration each, with the long text that ``fluxir explain`` prints.

One file for each range: FX01xx IR text and verifier (`ir`), FX02xx types and shapes (`types`), FX03xx frontend
(`frontend`), FX04xx passes (`passes`), FX05xx schedule, code generation and targets (`codegen`), FX06xx calls at run
time (`calls`), FX07xx devices (`devices`), FX08xx files and cache (`files`), FX09xx command line, settings and limits
(`cli`), FX10xx the library of layers (`library`), FX11xx optimisers,
data and training (`training`). Invariant: importing this package declares every code;
nothing here imports the rest of fluxir.
"""

from __future__ import annotations

from . import calls as calls
from . import cli as cli
from . import codegen as codegen
from . import devices as devices
from . import files as files
from . import frontend as frontend
from . import ir as ir
from . import kernels as kernels
from . import library as library
from . import onnx as onnx
from . import passes as passes
from . import training as training
from . import types as types
from ._entry import CODES, CodeInfo, ExitClass, declare

__all__ = ["CODES", "CodeInfo", "ExitClass", "declare"]
