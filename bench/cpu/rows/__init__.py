"""The rows, a file each class. `held_out` rows have other shapes of the same classes: the table is not what we tune to."""

ORDER = (
    "matmul", "vector", "linear", "elementwise", "row", "mlp", "conv", "model", "attention", "recurrent", "loop", "training",
    "call",
)  # fmt: skip
"""The classes in the order of the table."""
