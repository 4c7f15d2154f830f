"""Operand types behind the caret of an error: what the user's call was given, by the user's names.

The type rules of ops add such labels themselves. This is for errors found before an op is made: the public functions check
axes, kinds and shapes first. Nested public calls each label the error; the outermost one, which is the user's, wins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, Location
from fluxir.frontend.tensor import Tensor, local_names
from fluxir.frontend.trace import here, user_frame
from fluxir.ir.core import Value
from fluxir.ir.types import TensorType

LIMIT = 6  # labels
_MARK = "_labelled_call"


def label_call(e: FluxError, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Label an error of the call `fn(*args, **kwargs)`."""
    try:
        given = inspect.signature(fn).bind_partial(*args, **kwargs).arguments
    except TypeError:  # too many arguments, or an unknown one
        return
    label(e, given)


def label(e: FluxError, given: Mapping[str, Any]) -> None:
    """Label an error that arose at the user's present place with the tensors in `given`."""
    if not e.code.startswith("FX02") or e.labels and not getattr(e, _MARK, False):
        return
    place = here()
    if e.loc is not None and place is not None and (e.loc.file, e.loc.line) != (place.file, place.line):
        return  # in a function that the call was given
    names = local_names()
    found: list[tuple[Location | str, str]] = []
    for parameter, x in given.items():
        parts = list(x) if isinstance(x, tuple | list) else [x]
        for i, part in enumerate(parts):
            name = names.get(id(part), parameter if len(parts) == 1 else f"{parameter}[{i}]")
            if isinstance(part, Tensor):
                found.append((name, str(part.type)))
            elif isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
                found.append((name, str(TensorType.of(part.dtype, part.shape))))
    e.labels = list(dict.fromkeys(found))[:LIMIT]
    setattr(e, _MARK, True)


def name_operands(e: FluxError, values: Sequence[Value]) -> None:
    """Replace `operand 0` in an error's labels by the user's name for it, where a local variable holds it."""
    frame = user_frame()
    if frame is None:
        return
    names = {t.value: n for n, t in list(frame.f_locals.items()) if isinstance(t, Tensor)}
    for i, v in enumerate(values):
        label = (v.name or f"operand {i}", str(v.type))
        if label in e.labels and v in names:
            e.labels[e.labels.index(label)] = (names[v], str(v.type))


__all__ = ["label", "label_call", "name_operands"]
