"""`check_grads`: a function's derivatives against finite differences, for users and their own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import tree
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import here
from fluxir.ir.dtypes import dtype_of
from fluxir.transform import evaluate, jvp, vjp


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int = 2,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Check the derivatives of `f` at `args` up to `order` against central differences in random directions. FX0415.

    Forward mode is compared with the difference quotient, reverse mode with forward's (or the quotient's) product; order 2
    checks the derivative in such a direction again. Leaves of `args` that are no floats stay as they are. Tolerances and
    `eps` default to what the narrowest float type among them can tell.
    """
    for m in modes:
        if m not in ("fwd", "rev"):
            raise error("FX0221", f"check_grads: modes are 'fwd' and 'rev', not {m!r}")
    leaves, structure = tree.flatten(tuple(args))
    arrays = [np.asarray(x) for x in leaves]
    floats = [i for i, a in enumerate(arrays) if dtype_of(a.dtype).is_float]
    bits = min((dtype_of(arrays[i].dtype).bits for i in floats), default=64)
    step, tolerance = {64: (1e-5, 1e-5), 32: (1e-2, 2e-2)}.get(bits, (0.1, 0.2))
    step, atol, rtol = eps or step, tolerance if atol is None else atol, tolerance if rtol is None else rtol
    rng = np.random.default_rng(0)

    def flat(*xs: Any) -> Any:
        full: list[Any] = list(arrays)
        for i, x in zip(floats, xs, strict=True):
            full[i] = x
        out = tree.leaves(f(*structure.unflatten(full)))
        return tuple(x for x in out if _is_float(x))

    _check(flat, [arrays[i] for i in floats], order, tuple(modes), (atol, rtol, step), rng, "")


def _is_float(x: Any) -> bool:
    """Whether a result is a float tensor or array."""
    return bool((x.dtype if isinstance(x, Tensor) else dtype_of(np.asarray(x).dtype)).is_float)


def _check(
    f: Callable[..., Any], args: list[Any], order: int, modes: Sequence[str], limits: Any, rng: Any, of: str
) -> None:
    atol, rtol, eps = limits

    def along(scale: float, direction: Sequence[Any]) -> list[Any]:
        moved = [a + np.asarray(scale * d).astype(a.dtype) for a, d in zip(args, direction, strict=True)]
        return [np.asarray(x, np.float64) for x in evaluate(f, moved, {})]

    def compare(what: str, got: Any, want: Any) -> None:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if not np.allclose(got, want, atol=atol, rtol=rtol):
            worst = np.max(np.abs(got - want), initial=0.0)
            raise error("FX0415", f"check_grads: {what}{of} differs from finite differences by {worst:.3g} "
                        f"(derivative {_few(got)}, differences {_few(want)})", loc=here())  # fmt: skip

    direction = [np.asarray(rng.standard_normal(a.shape)).astype(a.dtype) for a in args]
    quotient = [(p - m) / (2 * eps) for p, m in zip(along(eps, direction), along(-eps, direction), strict=True)]
    outs = evaluate(f, args, {})
    weights = [np.asarray(rng.standard_normal(np.shape(o))).astype(np.asarray(o).dtype) for o in outs]

    def forward(*xs: Any) -> Any:
        return jvp(f, xs, direction)[1]

    def backward(*xs: Any) -> Any:
        return vjp(f, *xs)[1](tuple(weights))

    if "fwd" in modes:
        for t, q in zip(evaluate(forward, args, {}), quotient, strict=True):
            compare("the forward derivative", t, q)
    if "rev" in modes:
        grads = evaluate(backward, args, {})
        got = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in zip(grads, direction, strict=True))
        compare("the reverse derivative", got, sum(np.vdot(w, q) for w, q in zip(weights, quotient, strict=True)))
    if order > 1:
        for mode, derivative in (("fwd", forward), ("rev", backward)):
            if mode in modes:
                name = "forward" if mode == "fwd" else "reverse"
                _check(derivative, args, order - 1, modes, limits, rng, f" of the {name} derivative{of}")


def _few(x: Any) -> str:
    text = np.array2string(np.ravel(x)[:4], precision=6)
    return text[1:-1].strip() if np.ndim(x) == 0 else text


__all__ = ["check_grads"]
