"""Owns the codes FX11xx: optimisers, data loading, training and saved models."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX1101",
    "nothing to train",
    "user",
    """
    An optimiser trains the arrays of floats in a model. This one has none: its leaves are
    integers, Python numbers (which are settings), or functions.

        opt.init({"lr": 0.1})                       a Python number is no parameter
        opt.init({"w": np.ones(3, np.float32)})     this is one
    """,
    "make the parameters float arrays",
)

declare(
    "FX1102",
    "optimiser, schedule or loader with settings that make no sense",
    "user",
    """
    A number that is none, a negative count, a batch size of zero, boundaries that do not rise,
    a wrapper inside a chain.

        fx.optim.Adam(lr="0.1")
        fx.data.DataLoader(x, batch_size=0)
    """,
    "the message says which of them",
)

declare(
    "FX1103",
    "model, gradient and optimiser state do not belong together",
    "user",
    """
    The state of an optimiser is made for one model: its parameters by their paths. An update
    needs a gradient of the same structure, each array with the shape of its parameter.

        state = opt.init(model)
        grads = fx.grad(loss)(model, x, y)
        model, state = opt.update(model, grads, state)
    """,
    "make the state with init, and the gradient with fx.grad, of the model that is updated",
)

declare(
    "FX1104",
    "no such parameter or setting",
    "user",
    """
    `freeze`, `thaw` and `adjust` name parts of a model by path, and settings of an optimiser by
    name.

        fx.optim.freeze(state, "layers.0")
        fx.optim.adjust(state, "head", lr=1e-4)

    A setting that follows a schedule is not in the state and cannot be set.
    """,
    "the message lists the names that there are",
)

declare(
    "FX1105",
    "data that cannot be cut into batches",
    "user",
    """
    Data for training are arrays (in any tree) with one number of examples in front, or a
    sequence of examples, or an iterable of batches that can be run through more than once.

        fx.data.DataLoader((x, y), batch_size=32)      x is [1000, 64], y is [999]

    A generator is used up after one epoch: give fit a list, or an object whose __iter__ begins
    anew.
    """,
    "give all arrays the same size along the first axis",
)

declare(
    "FX1106",
    "loss of a wrong kind",
    "user",
    """
    `fit` minimises a scalar float. The loss function is called with the model and the batch,
    and returns it, or a pair of it and something else: a dict of scalars to report, or the
    model with new running statistics.

        def loss(model, x, y):
            return fx.mean((model(x) - y) ** 2)
    """,
    "return one number: the mean over the batch",
)

declare(
    "FX1107",
    "saved file does not fit",
    "user",
    """
    A file of arrays is loaded into the structure of a model (or an optimiser's state) that is
    there already: names, shapes, element types and fixed fields must be the same. The message
    names the first that is not.

        model = fx.train.load("model.safetensors", like=Model(key=fx.random.key(0)))

    A file of a newer format version, or one that another program wrote, is refused too;
    fx.load_safetensors reads the arrays of any safetensors file.
    """,
    "make the model with the settings it was saved with",
)

declare(
    "FX1108",
    "training cannot be resumed here",
    "user",
    """
    A checkpoint holds the model, the state of the optimiser and the place in the data. It goes
    on with the same model, optimiser, callbacks and data as before.
    """,
    "call fit as it was called when the checkpoint was written",
)
