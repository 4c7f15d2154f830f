"""An ONNX file as a function: its inputs with names and types, its weights, and the call that reads its graph."""

from __future__ import annotations

import mmap
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fluxir import config
from fluxir.errors import error
from fluxir.frontend.onnx import elements, schema, wire
from fluxir.frontend.onnx.external import ExternalData
from fluxir.frontend.onnx.graph import Importer, Scope
from fluxir.frontend.onnx.values import Narrow, Sizes, unwrapped
from fluxir.ir import dims
from fluxir.ir.core import Module
from fluxir.ir.dims import Dim
from fluxir.ir.types import TensorType

__all__ = ["Model", "entry_name", "load", "read", "renamed"]


def read(path: str | Path) -> schema.Model:
    """The parts of an ONNX file. Its data stays in the file (mapped into memory) until it is asked for.

    Raises FX0803 where the file cannot be read, FX0908 where it is larger than the setting `max_file_size`, FX1201 where it is
    no ONNX model, FX1202 beyond a limit.
    """
    limit = config.get().max_file_size
    try:
        # Without O_NONBLOCK opening a pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error("FX0803", f"cannot read {path}: it is not a regular file")
            if status.st_size > limit:
                raise error("FX0908", f"{path} has {status.st_size} bytes; at most {limit} are read")
            data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b"")
    except (OSError, ValueError) as e:
        raise error("FX0803", f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None
    return parse(data, str(path))


def parse(data: bytes | memoryview, file: str = "model") -> schema.Model:
    """The parts of an ONNX model that is in memory."""
    model = wire.decode(memoryview(data), schema.MODEL, file)
    if model.graph is None or not model.opsets:
        raise error("FX1201", f"{file} is no ONNX model: it has no {'graph' if model.graph is None else 'opset'}")
    assert isinstance(model, schema.Model)
    return model


class Model:
    """An ONNX model as a function of its inputs, which are tensors in order or by name.

    `inputs` has a tensor type for each input (sizes that the file leaves open are symbols), `outputs` the names of the
    results. A single result comes as itself, several as a tuple; elements of types that are only stored (int4, float8)
    come in what carries them. With `weights_as_args` the first argument is a dict of
    weights, as `weights` has them.
    """

    def __init__(
        self,
        model: schema.Model,
        file: str,
        *,
        sizes: Mapping[str, int] | None = None,
        weights_as_args: bool = False,
        folder: Path | None = None,
    ) -> None:
        assert model.graph is not None
        self.model, self.file, self.graph = model, file, model.graph
        self.opsets = schema.versions(model.opsets)
        self.weights_as_args = weights_as_args
        self.external = ExternalData(folder)
        self._arrays: dict[int, Any] = {}
        given = {t.name for t in self.graph.initializers}
        self._info = [i for i in self.graph.inputs if i.name not in given]
        name, count = Counter(i.name for i in self.graph.inputs).most_common(1)[0] if self.graph.inputs else ("", 0)
        if count > 1:
            raise error("FX1207", f"{file} has {count} inputs called {name!r}")
        symbols = Symbols(sizes or {})
        self.inputs = {i.name: input_type(i, symbols) for i in self._info}
        self.outputs = [o.name for o in self.graph.outputs]
        self.__name__ = self.graph.name or "model"

    def constant(self, t: schema.Tensor) -> Any:
        """A constant of the file as a value."""
        found = self._arrays.get(id(t))
        if found is None:
            array, e = elements.to_array(t, self.external.of(t) if t.location == 1 else None)
            found = self._arrays[id(t)] = Narrow(array, e) if e.narrow else array
        return found

    @property
    def weights(self) -> dict[str, Any]:
        """The trainable constants: floats of at least one axis, by name."""
        return {t.name: self.constant(t) for t in self.graph.initializers if is_weight(t)}

    def __call__(self, *args: Any, **named: Any) -> Any:
        weights: Mapping[str, Any] = {}
        if self.weights_as_args:
            weights, args = args[0], args[1:]
        values = [*args, *[named[i.name] for i in self._info[len(args) :]]]
        importer = Importer(self.model, self.file, self.constant)
        scope = Scope(dict(weights), self.opsets)
        by_name = {i.name: input_value(i, v) for i, v in zip(self._info, values, strict=True)}
        out = importer.graph(self.graph, scope, [by_name.get(i.name) for i in self.graph.inputs])
        out = tuple(x.tensor() if isinstance(x, Sizes) else unwrapped(x) for x in out)
        return out[0] if len(out) == 1 else out


def entry_name(path: str | Path) -> str:
    """A name for the program of a file: the file's own, as an identifier."""
    return identifier(Path(path).stem, "model")


def renamed(module: Module, inputs: Sequence[str], outputs: Sequence[str]) -> Module:
    """The module with arguments and results called as in the file, as far as these are names here too."""
    entry = module.entry
    for value, name in zip(entry.args, identifiers(inputs, [v.name for v in entry.args]), strict=False):
        value.name = name
    results = tuple(identifiers(outputs, [f"out{i}" for i in range(len(outputs))]))
    return module.with_func(replace(entry, result_names=results)) if len(results) == len(entry.outs) else module


def identifiers(names: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Names of a file as identifiers, each another one: of two that become the same the later one is numbered."""
    free = Free()
    return [free(identifier(name, default)) for name, default in zip(names, defaults, strict=False)]


class Free:
    """Gives out names once each: the name asked for, or that with a number."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # with the number to try next

    def __call__(self, name: str) -> str:
        found = name
        while found in self._taken:
            self._taken[name] += 1
            found = f"{name}_{self._taken[name]}"
        self._taken[found] = 1
        return found


def identifier(name: str, default: str) -> str:
    """A name of a file as an identifier; `default` where nothing of it is left."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)[:80]
    return default if not text.strip("_") else text if not text[0].isdigit() else f"_{text}"


def is_weight(t: schema.Tensor) -> bool:
    """Whether a constant is one to train."""
    return bool(t.dims) and t.data_type in (1, 10, 11, 16)


class Symbols:
    """The sizes that a file names: those given, and a symbol for each other one. Names that become the same symbol, such as
    `a-b` and `a.b`, stay apart."""

    def __init__(self, given: Mapping[str, int]) -> None:
        self.given = given
        self._names: dict[str, str] = {}
        self._free = Free()

    def size(self, name: str) -> Dim:
        symbol = self._names.get(name)
        if symbol is None:
            wanted = identifier(name, "d")
            wanted = wanted if wanted[0].isalpha() and wanted not in ("max", "min") else f"d{wanted}"
            symbol = self._names[name] = self._free(wanted)
        return self.given.get(name, self.given.get(symbol, dims.symbol(symbol)))


def input_type(info: schema.ValueInfo, symbols: Symbols) -> Any:
    """The type of an input; sizes that are left open become symbols named after the input and axis."""
    t = info.type.tensor if info.type is not None else None
    if t is None:
        return None
    d = elements.named(elements.element(t.elem, f"the input {info.name!r}"), f"the input {info.name!r}")
    if t.shape is None:
        raise error("FX1208", f"the input {info.name!r} has no shape, not even a number of axes")
    elements.count_of([max(x.value or 1, 1) for x in t.shape.dims], f"the input {info.name!r}", d.bits)
    return TensorType.of(d, tuple(_dim(x, info.name, i, symbols) for i, x in enumerate(t.shape.dims)))


def input_value(info: schema.ValueInfo, value: Any) -> Any:
    """What an argument is in the graph: elements that are only stored come in their carrier, or as `ml_dtypes` arrays."""
    t = info.type.tensor if info.type is not None else None
    if t is None or isinstance(value, tuple) or value is None:
        return value
    e = elements.element(t.elem, f"the input {info.name!r}")
    if not e.narrow:
        return value
    carrier = elements.named(e, info.name)
    return Narrow(np.asarray(value).astype(carrier.numpy) if isinstance(value, np.ndarray) else value, e)


def _dim(x: schema.Dimension, name: str, axis: int, symbols: Symbols) -> Dim:
    if x.value is not None and x.value >= 0:
        return x.value
    named = any(c.isascii() and c.isalnum() for c in x.param)  # "?" and the like name nothing
    return symbols.size(x.param if named else f"{name}_{axis}")


def load(path: str | Path, *, dims: Mapping[str, int] | None = None, weights_as_args: bool = False) -> Model:
    """The model of an ONNX file as a function; see `Model`. `dims` fixes symbolic sizes by name."""
    folder = Path(path).resolve().parent
    return Model(read(path), str(path), sizes=dims, weights_as_args=weights_as_args, folder=folder)
