"""ONNX models as functions: `fx.onnx.load(path)`, and `fx.onnx.check(path)` which says what will and will not work.

A loaded model is called with arrays and compiled on the first call: once for all sizes where the file leaves them open and
nothing in it needs them, else for the shapes of the call (and, where *values* of small integer inputs decide shapes, for
those). Inside a traced function it is part of that program, so it can be differentiated, batched and built upon. The
reading itself is `fluxir/frontend/onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxir.driver import Compiled, Lowered
from fluxir.embed import lower_function
from fluxir.errors import FluxError, error
from fluxir.frontend import onnx as reading
from fluxir.frontend import tree
from fluxir.frontend.onnx.survey import OperatorUse, Survey, survey
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import is_tracing

__all__ = ["Model", "OperatorUse", "Survey", "check", "load"]

# What says that a program cannot be made for open sizes: a size has to be compared or known.
SIZES = frozenset(
    {"FX0204", "FX0212", "FX0218", "FX0301", "FX0302", "FX0202", "FX0208", "FX0210", "FX1205", "FX0109", "FX0230"}
)
_SMALL = 1024  # elements of an integer input whose values may decide shapes


class Model:
    """An ONNX model. Call it with arrays, in order or by name; a single result comes as itself, several as a tuple.

    `inputs` maps names to types (sizes may be symbols), `outputs` are the names of the results, `weights` the trainable
    constants. With `weights_as_args` the first argument of a call is a dict of weights.
    """

    def __init__(self, source: reading.Model, target: str | None = None, device: str | None = None) -> None:
        self.source, self.target, self.device = source, target, device
        self.inputs, self.outputs = source.inputs, list(source.outputs)
        self.__name__ = source.__name__
        self._open: Compiled | FluxError | None = None  # the program for all sizes, or why there is none
        self._fixed: dict[Any, tuple[Compiled, tuple[bool, ...]]] = {}

    @property
    def weights(self) -> dict[str, Any]:
        """The trainable constants (floats of at least one axis) by name."""
        return self.source.weights

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself: texts by name, such as the labels of a classifier."""
        return {p.key: p.value for p in self.source.model.metadata}

    @property
    def is_open(self) -> bool:
        """Whether one program serves all sizes. Compiles it, where that has not been done."""
        return isinstance(self._all_sizes(), Compiled)

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}: {t}" for n, t in self.inputs.items())
        return f"<fx.onnx model {self.__name__}({shown}) -> ({', '.join(self.outputs)})>"

    def __call__(self, *args: Any, **named: Any) -> Any:
        if (
            not named
            and isinstance(self._open, Compiled)
            and not is_tracing()
            and all(type(x) is np.ndarray for x in args)
        ):
            return self._open(*args)  # what follows costs more than a small program
        values = self._ordered(args, named)
        leaves = tree.flatten(values)[0]
        if is_tracing() or any(isinstance(x, Tensor) for x in leaves):
            return self.source(*values)
        values = tree.map(lambda x: x if hasattr(x, "dtype") else np.asarray(x), values)
        program = self._all_sizes()
        if isinstance(program, Compiled):
            return program(*values)
        return self._for(values)

    def lower(self, *args: Any) -> Lowered:
        """The program before compilation: for the shapes of `args` (arrays or types), or without any for open sizes."""
        return lower_function(self.source, *(args or self._types()), name=self.__name__)

    def program(self, *args: Any) -> tuple[Compiled, list[str]]:
        """The program that a call with these arrays runs, and the names of the inputs that it takes: those that had to be
        constants are part of it."""
        names = list(self.inputs)
        found = self._all_sizes()
        if isinstance(found, Compiled):
            return found, names
        fixed, lowered = self._specialised(args)
        return lowered.compile(self.target, device=self.device), [n for n, f in zip(names, fixed, strict=True) if not f]

    # ---- programs ------------------------------------------------------------------------------------------------------------

    def _types(self) -> tuple[Any, ...]:
        types = tuple(self.inputs.values())
        if any(t is None for t in types):
            raise error("FX1205", "an input is a sequence or optional, whose parts the file does not say")
        return (self.weights, *types) if self.source.weights_as_args else types

    def _all_sizes(self) -> Compiled | FluxError:
        if self._open is None:
            try:
                self._open = self.lower().compile(self.target, device=self.device)
            except FluxError as e:
                if e.code not in SIZES:
                    raise
                self._open = e
        return self._open

    def _for(self, values: tuple[Any, ...]) -> Any:
        """The results by a program for the shapes of these values, and for the values that must be known."""
        shapes = tuple((x.shape, str(x.dtype)) for x in tree.flatten(values)[0])
        for (known, constants), (program, fixed) in self._fixed.items():
            if known == shapes and constants == _constants(values, fixed):
                return program(*[v for v, f in zip(values, fixed, strict=True) if not f])
        fixed, lowered = self._specialised(values)
        program = lowered.compile(self.target, device=self.device)
        self._fixed[shapes, _constants(values, fixed)] = program, fixed
        return program(*[v for v, f in zip(values, fixed, strict=True) if not f])

    def _specialised(self, values: tuple[Any, ...]) -> tuple[tuple[bool, ...], Lowered]:
        """Which values had to be constants, and the program."""
        choices = fixed_choices(values)
        for n, fixed in enumerate(choices):

            def call(*rest: Any, fixed: tuple[bool, ...] = fixed) -> Any:
                given = iter(rest)
                return self.source(*[v if f else next(given) for v, f in zip(values, fixed, strict=True)])

            try:
                rest = [v for v, f in zip(values, fixed, strict=True) if not f]
                return fixed, lower_function(call, *rest, name=self.__name__)
            except FluxError as e:
                if e.code not in SIZES or n == len(choices) - 1:
                    raise
        raise AssertionError

    def _ordered(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        names = ["weights", *self.inputs] if self.source.weights_as_args else list(self.inputs)
        unknown = [n for n in named if n not in names[len(args) :]]
        missing = [n for n in names[len(args) :] if n not in named]
        if unknown or missing or len(args) > len(names):
            what = f"has no input {unknown[0]!r} left" if unknown else f"lacks {', '.join(missing) or 'nothing'}"
            raise error("FX0601", f"a call of {self.__name__!r} {what}", help=f"the inputs are {', '.join(names)}")
        return (*args, *[named[n] for n in names[len(args) :]])


def fixed_choices(values: Sequence[Any]) -> list[tuple[bool, ...]]:
    """Which inputs to take as constants, in the order to try: none, small integers, and small floats beside them."""
    out = [tuple(v is None for v in values)]
    for kinds in ({"iub": _SMALL}, {"iub": _SMALL, "f": 16}):
        chosen = tuple(v is None or any(_decides(v, k, most) for k, most in kinds.items()) for v in values)
        if chosen != out[-1]:
            out.append(chosen)
    return out


def _decides(x: Any, kinds: str, most: int) -> bool:
    if not isinstance(x, np.ndarray):
        return False
    return ("f" if x.dtype.name == "bfloat16" else x.dtype.kind) in kinds and x.size <= most


def _constants(values: tuple[Any, ...], fixed: tuple[bool, ...]) -> tuple[bytes, ...]:
    return tuple(v.tobytes() if v is not None else b"" for v, f in zip(values, fixed, strict=True) if f)


def load(
    path: str | Path,
    *,
    dims: Mapping[str, int] | None = None,
    weights_as_args: bool = False,
    target: str | None = None,
    device: str | None = None,
) -> Model:
    """The model of an ONNX file as a function; see `Model`.

    `dims` fixes symbolic sizes by name (`{"batch": 8}`). With `weights_as_args` the trainable constants are the first
    argument, so that they can be fine-tuned. Raises FX0803 where the file cannot be read, FX1201 where it is no model.
    """
    return Model(reading.load(path, dims=dims, weights_as_args=weights_as_args), target, device)


def check(path: str | Path) -> Survey:
    """Every operator of an ONNX file, with whether it is supported and what to do where it is not; weights are not read."""
    return survey(reading.read(path))
