"""The composites: what networks are made of, each declared in the file of its family."""

from __future__ import annotations

from fluxir.ops import activation, attention, norm, softmax, special

__all__ = ["activation", "attention", "norm", "softmax", "special"]
