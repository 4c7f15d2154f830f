"""The ONNX operators, by family; importing this package registers all of them."""

from fluxir.frontend.onnx.ops import (  # noqa: F401
    attention,
    chosen,
    contrib,
    control,
    elementwise,
    grams,
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
    svm,
    trees,
    windows,
)
