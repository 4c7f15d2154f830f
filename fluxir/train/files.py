"""Saved models: `save` and `load` of any tree as a safetensors file whose metadata describe the structure as JSON.

The file is data and nothing else: loading runs no code and imports nothing by name. So a model is loaded into one of the same
structure (`like`), which brings the classes and functions; without it the arrays come back in dicts, lists and tuples.

Format, version 1: the arrays, named by their paths, and in the metadata

    format      "fluxir tree 1"
    structure   {"kind": ..., "keys": [...], "children": [...], "name": class, "fixed": {field: value}}; a leaf is "array", or
                {"number": 0.5} or {"text": "x"}, a function {"function": its name}, None is "none"
    meta        JSON that the caller gave

Invariants: the file appears complete or not at all; equal trees give equal bytes; what does not fit `like` is refused (FX1107)
before anything is built.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

import fluxir as fx

VERSION = 1
_FORMAT = "fluxir tree "


def save(path: str | os.PathLike[str], tree: Any, meta: Any = None) -> None:
    """Write a tree of arrays (a model, the state of an optimiser) and a note `meta` (anything that JSON holds) to `path`.

    FX1107 for what is no array, number, text or container; FX0804 if the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    structure = _described(tree, (), arrays)
    text = {"format": f"{_FORMAT}{VERSION}", "structure": _json(structure), "meta": _json(meta)}
    fx.save_safetensors(path, arrays, text)


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The tree in a file that `save` wrote. `like`: a tree of the same structure, shapes and types. FX1107."""
    return read(path).tree(like)


def load_with_meta(path: str | os.PathLike[str], like: Any = None) -> tuple[Any, Any]:
    """The tree and the note `meta`."""
    file = read(path)
    return file.tree(like), file.meta


@dataclass(frozen=True)
class Saved:
    """A file that was read and not yet built into a tree."""

    path: str
    structure: Any
    arrays: dict[str, Any]
    meta: Any

    def tree(self, like: Any = None, at: tuple[str, ...] = ()) -> Any:
        """The tree, or the part of it at a path of names; `like` as for `load`."""
        s = self.structure
        for key in at:
            if not isinstance(s, dict) or key not in s.get("keys", ()):
                raise _wrong(self.path, f"it has no part {key!r}")
            s = s["children"][s["keys"].index(key)]
        if like is None:
            return _built(s, at, self.arrays, self.path, 0)
        wanted: dict[str, Any] = {}
        _compare(s, _described(like, at, wanted), fx.tree.path_text(at), self.path)
        for name, x in wanted.items():
            y = self.arrays.get(name)
            if y is None:
                raise _wrong(self.path, f"it has no array {name!r}")
            if (tuple(y.shape), str(y.dtype)) != (tuple(x.shape), str(np.dtype(x.dtype))):
                raise _wrong(self.path, f"{name!r} is {y.dtype}{list(y.shape)}, the model has {x.dtype}{list(x.shape)}")
        leaves, structure = fx.tree.flatten(like, lambda x: isinstance(x, str))  # texts are as they are in the file
        numbers = _numbers(s, at)
        names = [fx.tree.path_text((*at, *p)) for p in structure.paths()]
        # Copies, each with memory of its own: a loaded model may be donated, and loaded twice from one file.
        new = [
            np.array(self.arrays[n]) if n in wanted else numbers.get(n, x) for n, x in zip(names, leaves, strict=True)
        ]
        return structure.unflatten(new)


def read(path: str | os.PathLike[str]) -> Saved:
    """A file that `save` wrote. FX1107."""
    shown = os.fspath(path)
    text = fx.read_safetensors_header(path).metadata
    given = text.get("format", "")
    if not given.startswith(_FORMAT):
        raise _wrong(
            shown, "it is a safetensors file that fx.train.save did not write", "fx.load_safetensors reads its arrays"
        )
    if given != f"{_FORMAT}{VERSION}":
        raise _wrong(shown, f"its format is {given!r}, this FluxIR reads {_FORMAT}{VERSION}", "update FluxIR")
    try:
        structure, meta = json.loads(text["structure"]), json.loads(text.get("meta", "null"))
    except (KeyError, ValueError, RecursionError):
        raise _wrong(shown, "the description of its structure is no JSON") from None
    return Saved(shown, structure, dict(fx.load_safetensors(path, map_file=False)), meta)


def _wrong(path: str, what: str, help: str | None = None) -> Exception:
    return fx.error("FX1107", f"{path}: {what}", help=help)


def _json(x: Any) -> str:
    try:
        return json.dumps(x, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as e:
        raise fx.error("FX1107", f"what is to be saved is no JSON: {e}") from None


# ---- describing -----------------------------------------------------------------------------------------------------------


def _described(x: Any, path: tuple[Any, ...], arrays: dict[str, Any]) -> Any:
    """The structure of a tree as JSON; its arrays go into `arrays`."""
    children, s = fx.tree.flatten(x, lambda y: y is not x)
    where = fx.tree.path_text(path)
    if s.kind == "none":
        return "none"
    if isinstance(x, str):
        return {"text": str(x)}
    if s.kind == "static":
        return {"function": str(getattr(x, "__name__", None) or type(x).__name__)}
    if s.kind == "leaf":
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            if where in arrays:
                raise fx.error("FX1107", f"two arrays have the path {where!r}", help="a key in a tree must hold no dot")
            arrays[where] = np.asarray(x)
            return "array"
        if isinstance(x, bool | int | float):
            return {"number": x if not isinstance(x, float) or math.isfinite(x) else repr(x)}
        raise fx.error("FX1107", f"{where or 'the tree'} is a {type(x).__name__}, which cannot be saved",
                       help="arrays, numbers, texts and containers of them can")  # fmt: skip
    out: dict[str, Any] = {"kind": s.kind, "keys": list(s.keys)}
    out["children"] = [_described(c, (*path, k), arrays) for k, c in zip(s.keys, children, strict=True)]
    if s.cls is not None:
        out["name"] = s.cls.__name__
    if s.kind == "dataclass" and s.aux:
        out["fixed"] = {name: _fixed(value) for name, value in s.aux}
    return out


def _fixed(x: Any) -> Any:
    """A field of the structure as JSON: what has no form of its own there is compared by its type."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, float):
        return repr(x)
    if isinstance(x, tuple | list):
        return [_fixed(v) for v in x]
    return {"a": getattr(x, "__name__", None) or type(x).__name__}


def _numbers(structure: Any, path: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The numbers and texts in a described structure, by path."""
    if not isinstance(structure, dict):
        return {}
    if "text" in structure:
        return {fx.tree.path_text(path): str(structure["text"])}
    if "number" in structure:
        x = structure["number"]
        return {fx.tree.path_text(path): float(x) if x in ("inf", "-inf", "nan") else x}
    out = {}
    for key, child in zip(structure.get("keys", ()), structure.get("children", ()), strict=True):
        out.update(_numbers(child, (*path, key)))
    return out


# ---- comparing and building -------------------------------------------------------------------------------------------------


def _compare(a: Any, b: Any, where: str, path: str) -> None:
    """FX1107 with the first place where the file's structure `a` and the model's `b` differ."""
    at = f" at {where!r}" if where else ""
    if isinstance(a, dict) and isinstance(b, dict) and "kind" in a and "kind" in b:
        for field, what in (("kind", "container"), ("name", "class"), ("keys", "names"), ("fixed", "fixed fields")):
            if a.get(field) != b.get(field):
                raise _wrong(
                    path,
                    f"the {what}{at} differ: {_brief(a.get(field))} in the file, {_brief(b.get(field))} in the model",
                )
        if len(a.get("children", ())) != len(b["children"]):
            raise _wrong(path, f"the number of parts{at} differs")
        for key, x, y in zip(b["keys"], a["children"], b["children"], strict=True):
            _compare(x, y, f"{where}.{key}" if where else str(key), path)
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and a.keys() <= {"number", "text"}:
        return  # a setting: the file's is taken
    elif a != b:
        raise _wrong(path, f"it has {_brief(a)}{at}, the model {_brief(b)}")


def _brief(x: Any) -> str:
    text = x["kind"] if isinstance(x, dict) and "kind" in x else x if isinstance(x, str) else json.dumps(x)
    return text if len(text) < 100 else text[:97] + "..."


def _built(s: Any, path: tuple[Any, ...], arrays: dict[str, Any], shown: str, depth: int) -> Any:
    """The tree of a described structure, in dicts, lists and tuples."""
    where = fx.tree.path_text(path)
    if depth > 200:
        raise _wrong(shown, "its structure is nested too deep")
    if s == "none":
        return None
    if s == "array":
        if where not in arrays:
            raise _wrong(shown, f"it has no array {where!r}")
        return np.array(arrays[where])
    if isinstance(s, dict) and "function" in s:
        return None
    if isinstance(s, dict) and ("number" in s or "text" in s):
        return _numbers(s)[""]
    if isinstance(s, dict):
        keys, children = s.get("keys"), s.get("children")
        fine = isinstance(keys, list) and isinstance(children, list) and len(keys) == len(children)
        if fine and all(isinstance(k, str | int) for k in keys):  # type: ignore[union-attr]
            built = [_built(c, (*path, k), arrays, shown, depth + 1) for k, c in zip(keys, children, strict=True)]  # type: ignore[arg-type]
            if s.get("kind") in ("list", "tuple"):
                return built if s["kind"] == "list" else tuple(built)
            return dict(zip(keys, built, strict=True))  # type: ignore[arg-type]
    raise _wrong(shown, f"the description of its structure makes no sense{f' at {where!r}' if where else ''}")


__all__ = ["VERSION", "Saved", "load", "load_with_meta", "read", "save"]
