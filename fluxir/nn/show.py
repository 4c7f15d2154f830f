"""How models are printed: one line a layer, with what it has in parameters and bytes, and a total."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, function_name, trainable


def count(model: Any) -> tuple[int, int, int]:
    """(parameters, other numbers, bytes): elements of the trainable leaves, of the other arrays, and the size of all."""
    parameters = others = size = 0
    for x, is_parameter in zip(fx.tree.leaves(model), fx.tree.leaves(trainable(model)), strict=True):
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
        if shape is None or dtype is None or not all(isinstance(d, int) for d in shape):
            continue
        n = math.prod(shape)
        size += n * max(fx.dtype(dtype).bits // 8, 1)
        if is_parameter:
            parameters += n
        else:
            others += n
    return parameters, others, size


def bytes_text(n: int) -> str:
    """A number of bytes for readers: 512 B, 1.5 KiB."""
    size = float(n)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{n} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _counted(x: Any) -> str:
    parameters, others, size = count(x)
    if not parameters and not others:
        return ""
    parts = [f"{parameters:,} parameter{'' if parameters == 1 else 's'}"] if parameters or not others else []
    if others:
        parts.append(f"{others:,} of state")
    return f"{', '.join(parts)}, {bytes_text(size)}"


def render(model: Module) -> str:
    """The text of a model."""
    lines: list[tuple[str, str]] = []
    _lines(model, "", "", "", lines)
    if len(lines) == 1:
        head, note = lines[0]
        return f"{head}  # {note}" if note else head
    total = _counted(model)
    lines[-1] = (lines[-1][0], f"in all {total}" if total else "")
    width = max(len(head) for head, note in lines if note) if any(note for _, note in lines) else 0
    return "\n".join(f"{head:<{width}}  # {note}" if note else head for head, note in lines)


def _lines(x: Any, name: str, indent: str, end: str, out: list[tuple[str, str]]) -> None:
    label = f"{name}=" if name else ""
    if not isinstance(x, Module):
        out.append((f"{indent}{label}{function_name(x)}{end}", ""))
        return
    below = list(_parts(x))
    kind, about = type(x).__name__, _about(x)
    if not below:
        out.append((f"{indent}{label}{kind}({about}){end}", _counted(x)))
        return
    out.append((f"{indent}{label}{kind}({about + ',' if about else ''}", ""))
    for n, child in below:
        _lines(child, n, indent + "  ", ",", out)
    out.append((f"{indent}){end}", _counted(x) if indent else ""))


def _about(x: Module) -> str:
    try:
        return x.about()
    except (AttributeError, TypeError, ValueError, IndexError):
        return "..."  # the leaves are no arrays, as in a tree of flags


def _parts(x: Module) -> list[tuple[str, Any]]:
    """The layers in a module with their names: its modules, and functions beside modules in a sequence of layers."""
    out: list[tuple[str, Any]] = []
    for f in dataclasses.fields(x):
        value = getattr(x, f.name)
        if f.metadata.get("static"):
            continue
        if isinstance(value, Module):
            out.append((f.name, value))
        elif isinstance(value, list | tuple) and any(isinstance(v, Module) or fx.tree.is_function(v) for v in value):
            names = x.layer_names() if f.name == "layers" and hasattr(x, "layer_names") else None
            labels = names or [""] * len(value) if f.name == "layers" else [f"{f.name}.{i}" for i in range(len(value))]
            out += [
                (n, v) for n, v in zip(labels, value, strict=True) if isinstance(v, Module) or fx.tree.is_function(v)
            ]
        elif isinstance(value, dict) and any(isinstance(v, Module) for v in value.values()):
            out += [(f"{f.name}.{k}", v) for k, v in value.items() if isinstance(v, Module)]
    return out


__all__ = ["bytes_text", "count", "render"]
