"""The composites: what networks are made of, each declared in the file of its family."""

from __future__ import annotations

from fluxir.ops import activation, norm, softmax, special

__all__ = ["activation", "norm", "softmax", "special"]
