"""The ONNX operators, by family; importing this package registers all of them."""

from fluxir.frontend.onnx.ops import (  # noqa: F401
    attention,
    contrib,
    control,
    elementwise,
    image,
    losses,
    ml,
    movement,
    products,
    quantised,
    random,
    recurrent,
    reduction,
    signal,
    windows,
)
