"""`fx.from_torch(module, *example)`: a PyTorch module as a function here, through `torch.export`.

torch is imported only while a module is exported; the program that comes out needs it no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fluxir.driver import Compiled, Lowered
from fluxir.embed import lower_function
from fluxir.errors import error
from fluxir.frontend import aten, tree
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import is_tracing

__all__ = ["TorchModel", "from_torch"]


class TorchModel:
    """An exported module. Call it with arrays in the order of the example; results come as the module gives them, as arrays.

    `weights` has the parameters and buffers by name. In a traced function a call is part of that program;
    `call(weights, *inputs)` takes the weights as arguments, to train them.
    """

    def __init__(self, program: Any, target: str | None = None, device: str | None = None) -> None:
        self.program = program
        self.target, self.device = target, device
        self.inputs = dict(zip(program.names, program.inputs, strict=True))
        self.weights: dict[str, np.ndarray[Any, Any]] = program.weights
        self._compiled: Compiled | None = None

    def __call__(self, *args: Any) -> Any:
        leaves = tree.flatten(args)[0]
        if is_tracing() or any(isinstance(x, Tensor) for x in leaves):
            return self.program(self.weights, *leaves)
        if self._compiled is None:
            self._compiled = self.lower().compile(self.target, device=self.device)
        return self._compiled(*[np.asarray(x) for x in leaves])

    def call(self, weights: Mapping[str, Any], *args: Any) -> Any:
        """The results with the weights given."""
        return self.program(weights, *tree.flatten(args)[0])

    def lower(self) -> Lowered:
        """The program before compilation; sizes are symbols where the example's were dynamic."""

        def call(*inputs: Any) -> Any:
            return self.program(self.weights, *inputs)

        return lower_function(call, *self.program.inputs, facts=self.program.facts or None, name="torch_module")

    def __repr__(self) -> str:
        return f"<fx.from_torch model ({', '.join(f'{n}: {t}' for n, t in self.inputs.items())})>"


def from_torch(
    module: Any,
    *example: Any,
    dynamic_shapes: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    target: str | None = None,
    device: str | None = None,
) -> TorchModel:
    """The module's `forward` as a function of arrays.

    `example` are inputs (torch tensors) that `torch.export` traces with; `dynamic_shapes` says which of their sizes are
    open, as torch has it: `{0: torch.export.Dim("batch")}` for each input. Raises FX1209 without torch, FX1203 for an
    operator that is not supported.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise error("FX1209", "from_torch needs PyTorch") from None
    program = aten.export(module, example, example_kwargs or {}, dynamic_shapes)
    return TorchModel(aten.Program(program), target, device)
