"""PyTorch programs as ours: `graph.py` reads what `torch.export` makes of a module, node by node, with a function for each
operator of ATen (`ops.py`, `nn.py`, found through `registry.py`). torch itself is imported only by whoever calls this."""

from fluxir.frontend.aten.graph import Program, export, known_operators

__all__ = ["Program", "export", "known_operators"]
