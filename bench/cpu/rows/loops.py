"""Loops of small work: a neural ODE and its gradient, loops whose length depends on the data, a dynamical system."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cpu.row import normal, row

STEPS, BATCH, HIDDEN = 40, 20, 50


def _weights(d: int, hidden: int) -> dict[str, Any]:
    return {
        "w1": normal(d, hidden, scale=0.5), "b1": normal(hidden, scale=0.1), "w2": normal(hidden, d, scale=0.3, seed=1),
        "b2": normal(d, scale=0.1),
    }  # fmt: skip


def _field(tanh: Any, p: Any, y: Any) -> Any:
    return tanh((y * y * y) @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def _rk4(tanh: Any, p: Any, y: Any, h: float) -> Any:
    """One step of the classical Runge-Kutta method."""
    k1 = _field(tanh, p, y)
    k2 = _field(tanh, p, y + (h / 2) * k1)
    k3 = _field(tanh, p, y + (h / 2) * k2)
    k4 = _field(tanh, p, y + h * k3)
    return y + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)


def _ours(y: Any, p: Any, steps: int) -> Any:
    import fluxir as fx

    def loss(p: Any) -> Any:
        end, _ = fx.scan(lambda y, _: (_rk4(fx.tanh, p, y, 1.0 / steps), None), y, None, length=steps)
        return fx.mean(end * end)

    return fx.value_and_grad(loss)(p)


def _jax(y: Any, p: Any, steps: int) -> Any:
    import jax
    import jax.numpy as jnp

    def loss(p: Any) -> Any:
        end, _ = jax.lax.scan(lambda y, _: (_rk4(jnp.tanh, p, y, 1.0 / steps), None), y, None, length=steps)
        return jnp.mean(end * end)

    return jax.value_and_grad(loss)(p)


def _torch(y: Any, p: Any, steps: int) -> Any:
    import torch

    with torch.enable_grad():
        p = {k: a.detach().requires_grad_() for k, a in p.items()}
        for _ in range(steps):
            y = _rk4(torch.tanh, p, y, 1.0 / steps)
        loss = (y * y).mean()
        return loss.detach(), dict(zip(p, torch.autograd.grad(loss, list(p.values()))))


def ode(d: int, hidden: int, batch: int, steps: int, *, ratio: float, held_out: bool = False) -> None:
    field = 2.0 * batch * (2 * d * hidden)
    row(
        f"neural ODE gradient (RK4 x{steps}, {d}-{hidden}-{d}, batch {batch})", "loop",
        lambda: (normal(batch, d, shift=0.5, scale=0.5), _weights(d, hidden)), flops=3 * 4 * steps * field,
        ratio=ratio, held_out=held_out, tolerance=1e-3,
        ours=lambda y, p: _ours(y, p, steps), jax=lambda y, p: _jax(y, p, steps), torch=lambda y, p: _torch(y, p, steps),
    )  # fmt: skip


ode(2, 50, 20, 40, ratio=4)
ode(3, 33, 7, 25, ratio=4, held_out=True)
ode(16, 64, 64, 20, ratio=2, held_out=True)

# ---- loops that end when the data says so -----------------------------------------------------------------------------------

MOST = 100


def _grid(n: int, m: int) -> tuple[Any, Any]:
    x, y = np.meshgrid(np.linspace(-2, 0.6, m, dtype=np.float32), np.linspace(-1.2, 1.2, n, dtype=np.float32))
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _mandelbrot_ours(cx: Any, cy: Any) -> Any:
    """The number of steps until |z| > 2, for each element by itself."""
    import fluxir as fx

    def more(state: Any) -> Any:
        x, y, n = state
        return fx.any((x * x + y * y <= 4) & (n < MOST))

    def step(state: Any) -> Any:
        x, y, n = state
        inside = (x * x + y * y <= 4) & (n < MOST)
        return (fx.where(inside, x * x - y * y + cx, x), fx.where(inside, 2 * x * y + cy, y),
                fx.where(inside, n + 1, n))  # fmt: skip

    zero = fx.zeros(cx.shape, dtype=fx.float32)
    return fx.while_loop(more, step, (zero, zero, fx.zeros(cx.shape, dtype=fx.int32)))[2]


def _mandelbrot_numpy(cx: Any, cy: Any) -> Any:
    x, y, n = np.zeros_like(cx), np.zeros_like(cx), np.zeros(cx.shape, np.int32)
    for _ in range(MOST):
        inside = x * x + y * y <= 4
        if not inside.any():
            break
        x, y = np.where(inside, x * x - y * y + cx, x), np.where(inside, 2 * x * y + cy, y)
        n += inside
    return n


def _mandelbrot_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(cx: Any, cy: Any) -> Any:
        out = np.empty(cx.shape, np.int32)
        for i in numba.prange(cx.shape[0]):
            for j in range(cx.shape[1]):
                x = y = np.float32(0)
                n = 0
                while x * x + y * y <= np.float32(4) and n < MOST:
                    x, y = x * x - y * y + cx[i, j], np.float32(2) * x * y + cy[i, j]
                    n += 1
                out[i, j] = n
        return out

    return f


def _mandelbrot_jax(cx: Any, cy: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def inside(state: Any) -> Any:
        x, y, n = state
        return (x * x + y * y <= 4) & (n < MOST)

    def step(state: Any) -> Any:
        x, y, n = state
        go = inside(state)
        return jnp.where(go, x * x - y * y + cx, x), jnp.where(go, 2 * x * y + cy, y), jnp.where(go, n + 1, n)

    zero = jnp.zeros(cx.shape, jnp.float32)
    return jax.lax.while_loop(lambda s: inside(s).any(), step, (zero, zero, jnp.zeros(cx.shape, jnp.int32)))[2]


def mandelbrot(n: int, m: int, ratio: float, held_out: bool = False) -> None:
    cx, cy = _grid(n, m)
    steps = float(_mandelbrot_numpy(cx, cy).sum())
    row(
        f"data-dependent loop (Mandelbrot {n}x{m}, {MOST} steps)", "loop", lambda: _grid(n, m), flops=7 * steps,
        ratio=ratio, held_out=held_out, outliers=0.01,
        ours=_mandelbrot_ours, numpy=_mandelbrot_numpy, numba=_mandelbrot_numba, jax=_mandelbrot_jax,
    )  # fmt: skip


mandelbrot(512, 768, 2)
mandelbrot(101, 97, 2, held_out=True)


def _root_ours(a: Any) -> Any:
    """Cube roots by Newton's method, each until it no longer moves."""
    import fluxir as fx

    def more(state: Any) -> Any:
        x, old, n = state
        return fx.any((fx.abs(x - old) > 1e-6 * fx.abs(x)) & (n < 60))

    def step(state: Any) -> Any:
        x, old, n = state
        moving = (fx.abs(x - old) > 1e-6 * fx.abs(x)) & (n < 60)
        return fx.where(moving, (2 * x + a / (x * x)) / 3, x), fx.where(moving, x, old), fx.where(moving, n + 1, n)

    return fx.while_loop(more, step, (a, fx.zeros(a.shape, dtype=fx.float32), fx.zeros(a.shape, dtype=fx.int32)))[0]


def _root_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(a: Any) -> Any:
        out = np.empty_like(a)
        for i in numba.prange(a.size):
            x, old, n = a[i], np.float32(0), 0
            while abs(x - old) > np.float32(1e-6) * abs(x) and n < 60:
                old = x
                x = (np.float32(2) * x + a[i] / (x * x)) / np.float32(3)
                n += 1
            out[i] = x
        return out

    return f


def _root_jax(a: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def moving(state: Any) -> Any:
        x, old, n = state
        return (jnp.abs(x - old) > 1e-6 * jnp.abs(x)) & (n < 60)

    def step(state: Any) -> Any:
        x, old, n = state
        go = moving(state)
        return jnp.where(go, (2 * x + a / (x * x)) / 3, x), jnp.where(go, x, old), jnp.where(go, n + 1, n)

    return jax.lax.while_loop(lambda s: moving(s).any(), step, (a, jnp.zeros_like(a), jnp.zeros(a.shape, jnp.int32)))[0]


row(
    "data-dependent loop (cube roots by Newton, 200,000)", "loop", lambda: (np.abs(normal(200_000, scale=50)) + 0.01,), ratio=2,
    held_out=True, ours=_root_ours, numba=_root_numba, jax=_root_jax,
)  # fmt: skip


def _lorenz(xp: Any, s: Any) -> Any:
    x, y, z = s[0], s[1], s[2]
    return s + 0.005 * xp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def _lorenz_ours(s: Any) -> Any:
    import fluxir as fx

    return fx.fori_loop(0, 1000, lambda i, s: _lorenz(fx, s), s)


def _lorenz_jax(s: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.lax.fori_loop(0, 1000, lambda i, s: _lorenz(jnp, s), s)


def _lorenz_numba() -> Any:
    import numba

    @numba.njit(fastmath=True)
    def f(s: Any) -> Any:
        out = s.copy()
        h, c = np.float32(0.005), np.float32(8 / 3)
        for _ in range(1000):
            for j in range(s.shape[1]):
                x, y, z = out[0, j], out[1, j], out[2, j]
                out[0, j] = x + h * (np.float32(10) * (y - x))
                out[1, j] = y + h * (x * (np.float32(28) - z) - y)
                out[2, j] = z + h * (x * y - c * z)
        return out

    return f


def _lorenz_numpy(s: Any) -> Any:
    for _ in range(1000):
        s = _lorenz(np, s).astype(np.float32)
    return s


row(
    "1000 Euler steps of 16 Lorenz systems", "loop", lambda: (normal(3, 16, shift=1.0, scale=0.1),), held_out=True,
    tolerance=0.05, ours=_lorenz_ours, jax=_lorenz_jax, numba=_lorenz_numba, numpy=_lorenz_numpy,
)  # fmt: skip
