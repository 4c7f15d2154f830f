"""FluxIR: a small, readable ML compiler. This file owns the public names and nothing else.

Names are loaded when first used, so that `import fluxir` takes milliseconds: numpy, the compiler and the runtime arrive
with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FRONTEND = "fluxir.frontend."

# Which module owns which public names. `name=other` gives a module's `other` the public name `name`.
_NAMES: dict[str, str] = {
    "fluxir.ir.dtypes": "bool=bool_ i8 i16 i32 i64 u8 u16 u32 u64 f16 bf16 f32 f64 DType",
    "fluxir.ir.types": "TensorType",
    "fluxir.ir.dims": "ceildiv prove_equal prove_less=prove_lt",
    "fluxir.errors": "FluxError",
    _FRONTEND + "tensor": "Tensor",
    _FRONTEND + "trace": "trace",
}

_MODULES: dict[str, str] = {
    "tree": _FRONTEND + "tree",
}

_WHERE: dict[str, tuple[str, str]] = {}
for _module, _names in _NAMES.items():
    for _entry in _names.split():
        _public, _, _original = _entry.partition("=")
        _WHERE[_public] = (_module, _original or _public)

__all__ = ["__version__", *_WHERE, *_MODULES]

if TYPE_CHECKING:
    from fluxir.errors import FluxError as FluxError
    from fluxir.frontend import tree as tree
    from fluxir.frontend.tensor import Tensor as Tensor
    from fluxir.frontend.trace import trace as trace


def __getattr__(name: str) -> Any:
    """Load a public name the first time it is asked for."""
    if name in _WHERE:
        module, original = _WHERE[name]
        value = getattr(importlib.import_module(module), original)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'fluxir' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
