"""`fx.kernel`: a Python function as a GPU kernel that is compiled when it is first launched on arguments of some types.

    @fx.kernel
    def saxpy(a, x, y):
        i = fx.gpu.global_id.x
        if i < len(x):
            y[i] += a * x[i]

    saxpy[grid, block](2.0, x, y)

A launch runs on the device of the setting `device`, or the one that `on` names. Kernels are compiled once for any grid and
block; a block that is fixed with `@fx.kernel(block=256)` lets the assembler use more registers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxir import config
from fluxir.errors import error
from fluxir.frontend.kernel.signature import Param, annotations_of, flattened, found
from fluxir.frontend.tensor import Tensor
from fluxir.ir.core import Func
from fluxir.ir.dims import Poly
from fluxir.kernels import reflect
from fluxir.kernels.arguments import Triple, check_block, given, triple
from fluxir.kernels.build import Build
from fluxir.kernels.devices import run
from fluxir.kernels.routes import remember
from fluxir.kernels.traced import call_traced
from fluxir.runtime.route import Routed

__all__ = ["Kernel", "Launcher", "kernel"]

_LAUNCHERS = 256  # of a kernel, kept with what they know of their arguments


class Kernel:
    """A kernel; see `kernel`. Launch it with `k[grid, block, shared_bytes, stream](arguments...)`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        block: Any = None,
        device: str | None = None,
        builds: dict[Any, Build] | None = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn = self.__wrapped_kernel__ = fn
        self.block = triple(fn.__name__, "block", block) if block is not None else None
        self.device_name = device
        self._launchers: dict[Any, Launcher] = {}
        self._builds: dict[Any, Build] = {} if builds is None else builds

    def __repr__(self) -> str:
        where = f" on {self.device_name}" if self.device_name else ""
        return f"<fx.kernel {self.fn.__name__}{where}>"

    def __call__(self, *args: Any, **named: Any) -> Any:
        raise error("FX0335", f"the kernel {self.fn.__name__!r} is called without a grid")

    def __getitem__(self, shape: Any) -> Launcher:
        """`k[grid, block]`, `k[grid, block, shared_bytes]`, `k[grid, block, shared_bytes, stream]`; `k[grid]` with a block that
        was fixed when compiling."""
        key = self._known(shape)
        found = self._launchers.get(key) if key is not None else None
        if found is None:
            found = self._launcher(shape)
            if key is not None:
                if len(self._launchers) >= _LAUNCHERS:
                    self._launchers.clear()
                self._launchers[key] = found
        return found

    def _launcher(self, shape: Any) -> Launcher:
        parts = shape if isinstance(shape, tuple) else (shape,)
        name = self.fn.__name__
        if len(parts) == 1 and self.block is not None:
            parts = (parts[0], self.block)
        if not 2 <= len(parts) <= 4:
            raise error(
                "FX0335", f"{name}: a launch says [grid, block], then bytes of shared memory and a stream if needed"
            )
        shared = parts[2] if len(parts) > 2 else 0
        stream = parts[3] if len(parts) > 3 else None
        return Launcher(self, triple(name, "grid", parts[0]), triple(name, "block", parts[1]), shared, stream)

    def _known(self, shape: Any) -> Any:
        """What tells one launcher from another; None for what is better not kept."""
        parts = shape if type(shape) is tuple else (shape,)
        plain = all(type(n) is int for p in parts for n in (p if type(p) is tuple else (p,)))
        return shape if plain else None

    def launch(
        self, grid: Any, block: Any = None, args: Sequence[Any] = (), shared: int = 0, stream: Any = None
    ) -> Any:
        """The same as `k[grid, block, shared, stream](*args)`."""
        return self[(grid, self.block if block is None else block, shared, stream)](*args)

    def on(self, device: str) -> Kernel:
        """The kernel for a device: `cpu`, `vgpu`, `vgpu:sm_80`, `cuda`, `cuda:1`. FX0902 for other names."""
        with config.override(device=device):
            return Kernel(self.fn, self.block, device, self._builds)

    @property
    def device(self) -> str:
        """Where launches run: what `on` said, else the setting `device`."""
        return self.device_name or config.get().device

    # ---- building
    @functools.cached_property
    def _signature(self) -> tuple[inspect.Signature, dict[str, Any]]:
        return inspect.signature(self.fn), annotations_of(self.fn)

    def bound(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter. FX0601 where they do not fit the function."""
        signature, _ = self._signature
        try:
            found = signature.bind(*args, **named)
        except TypeError as reason:
            raise error("FX0601", f"{self.fn.__name__}: {reason}", help=f"it takes {signature}") from None
        found.apply_defaults()
        return dict(found.arguments)

    def params(self, values: Mapping[str, Any]) -> list[Param]:
        """The parameters that arguments (or tensor types in their places) ask for."""
        _, hints = self._signature
        return [found(n, x, hints.get(n)) for n, x in values.items()]

    def build(self, *args: Any, **named: Any) -> Build:
        """The kernel for arguments of these types; without arguments for the types that its annotations state."""
        if not args and not named:
            _, hints = self._signature
            args = tuple(hints.get(n) for n in self._signature[0].parameters)
            if any(a is None for a in args):
                missing = [n for n, a in zip(self._signature[0].parameters, args, strict=True) if a is None]
                raise error("FX0309", f"{self.fn.__name__}: the parameters {', '.join(missing)} have no type",
                            help='annotate them, as in x: fx.f32["N"], or give arguments')  # fmt: skip
        return self._built(self.params(self.bound(args, named)))

    def _built(self, params: Sequence[Param]) -> Build:
        key = (self.block, tuple(p.key() for p in params))
        if key not in self._builds:
            self._builds[key] = Build(self.fn, params, self.block or ())
        return self._builds[key]

    def run(self, launcher: Launcher, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """One launch."""
        grid, block, shared, stream = launcher.grid, launcher.block, launcher.shared, launcher.stream
        name = self.fn.__name__
        check_block(name, block)
        if self.block is not None and block != self.block:
            raise error("FX0335", f"{name}: launched with a block of {block}, it was compiled for {self.block}")
        if not hasattr(shared, "__index__") or int(shared) < 0:
            raise error("FX0335", f"{name}: the bytes of shared memory are {shared!r}")
        values = self.bound(args, named)
        params = self.params(values)
        leaves = [x for p, v in zip(params, values.values(), strict=True) for x in flattened(p, v)]
        if any(isinstance(x, Tensor) for x in leaves):
            if stream is not None or shared:
                raise error("FX0335", f"{name}: a kernel in a traced program has no stream and no dynamic shared memory",
                            help="give fx.gpu.shared sizes that are known when compiling")  # fmt: skip
            return call_traced(self.fn, params, leaves, grid, block)
        if any(isinstance(n, Poly) for n in grid):
            raise error(
                "FX0335", f"{name}: the grid {grid} has a size that is not known, and no argument is being traced"
            )
        build = self._built(params)
        found = given(build.func, leaves, build.written, int(shared))
        report = run(build, self.device, found, grid, block, int(shared), stream)
        if self.device == "cpu" and not found.aliased and len(values) == len(args) + len(named):
            remember(launcher, build, params, (values, len(args)), leaves, grid, block, int(shared))
        return report

    # ---- looking inside
    def func(self, *args: Any, **named: Any) -> Func:
        """The kernel as loop IR for arguments of these types (arrays, numbers, or tensor types)."""
        return self.build(*args, **named).func

    def code(self, stage: str, *args: Any, block: Any = None, **named: Any) -> str:
        """The kernel's text at a stage: `typed` (as written, in loop IR), `loops` (what machine code is made from), `llvm`,
        and `ptx` and `sass` on a GPU or `asm` on the CPU, for the device that launches run on."""
        return reflect.code(self, stage, self.build(*args, **named), block)

    def attributes(self, *args: Any, **named: Any) -> reflect.Attributes:
        """Registers, shared and local memory of the kernel, as ptxas says or, without it, as an estimate."""
        return reflect.attributes(self.build(*args, **named), reflect.target_of(self.device))

    def suggest(self, n: int, *args: Any, shared: int = 0, **named: Any) -> reflect.Suggestion:
        """A grid and a block for `n` threads that keep the GPU as busy as its limits allow."""
        return reflect.suggest(self, self.build(*args, **named), n, shared)


class Launcher(Routed):
    """`k[grid, block]`: calling it launches the kernel. On a virtual GPU the call returns its report, else None."""

    def __init__(self, kernel: Kernel, grid: Triple, block: Triple, shared: Any, stream: Any) -> None:
        super().__init__()
        self.kernel, self.grid, self.block, self.shared, self.stream = kernel, grid, block, shared, stream

    def _called(self, *args: Any, **named: Any) -> Any:
        return self.kernel.run(self, args, named)


def kernel(fn: Callable[..., Any] | None = None, *, block: Any = None) -> Any:
    """A Python function as a GPU kernel: `@fx.kernel` or `@fx.kernel(block=256)`.

    Parameters are arrays and numbers (and named tuples of them), with types from annotations (`x: fx.f32["N"]`, `n: fx.i32`) or
    from the arguments of each launch. The function is written in a subset of Python with `fx.gpu`; see docs/kernels.md.
    Raises FX0330 to FX0335 when it is launched or looked at.
    """
    if fn is None:
        return lambda f: Kernel(f, block)
    return Kernel(fn, block)
