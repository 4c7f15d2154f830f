"""Owns the codes FX10xx: the library on top, layers and training."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX1001",
    "prediction and target differ in shape",
    "user",
    """
    A loss compares two tensors element by element and never broadcasts: [B, 1] against [B] would become [B, B], and train
    on nonsense without a word.

        fx.nn.mse(prediction, target)      prediction is [32, 1], target is [32]

    The two shapes must be the same, or known to be the same where sizes are symbols.
    """,
    "bring both to one shape, for example with fx.reshape or fx.squeeze",
)

declare(
    "FX1002",
    "input does not fit the layer",
    "user",
    """
    A layer was made for a number of features or channels, or for a number of axes, and the input has another one.

        fx.nn.Dense(784, 10, key=key)(x)      x is [32, 28, 28]: the last axis has 28 elements, not 784

    The message names the layer and the shape it was given.
    """,
    "bring the input to the layer's shape, or make the layer for this input",
)

declare(
    "FX1003",
    "layer made with settings that do not fit together",
    "user",
    """
    A layer's constructor was given numbers that contradict each other: groups that do not divide the channels, heads that
    do not divide the width, a probability outside 0..1, a static field that cannot be hashed.
    """,
    "the message says which of them",
)

declare(
    "FX1004",
    "layer needs a random key in training",
    "user",
    """
    Dropout and its relatives draw random numbers when `train=True`, and the key they draw them with is explicit:

        model(x, train=True, key=fx.random.fold_in(key, step))

    A container hands each of its layers a key of its own, made from the one it was given.
    """,
    "call the model with key=..., a new one at each step",
)

declare(
    "FX1005",
    "new statistics of a layer are taken by nobody",
    "user",
    """
    A layer such as BatchNorm computes new running statistics in training. A layer cannot change itself, so they go into
    the model that `State` or `apply` returns:

        y, model = fx.nn.apply(model, x, train=True)

        with fx.nn.State(model) as state:
            y = model(x, train=True)
        model = state.model

    Without one of them the statistics would be lost, and the model wrong when it is used. The same holds for a State
    that is open around a loop or a transform (fx.scan, fx.grad, fx.vmap) in whose body the layer runs: open it inside,
    and return state.model from there.
    """,
    "call it through fx.nn.apply(model, ...), or inside `with fx.nn.State(model) as state:`",
)

declare(
    "FX1006",
    "modules do not change",
    "user",
    """
    A module is a value: its fields are set in its `__init__`, all of them, and never after. A changed model is a new one:

        layer = layer.replace(bias=new_bias)

    In compiled programs nothing else would make sense: an assignment while tracing does not happen again when the program
    runs.
    """,
    "make a changed copy with .replace(field=value)",
)

declare(
    "FX1007",
    "parameters do not fit the model",
    "user",
    """
    A state dict (or a flat vector) that is to be loaded into a model lacks an entry, has one more, or has one of another
    shape. The message names it. Conventions that differ, such as the order of axes, are turned on the way; sizes are not.
    """,
    "load it into a model made with the same sizes",
)
