"""What the builder makes of Python scalars among the operands."""

from __future__ import annotations

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.types import TensorType, VectorType


def values(*types):
    return [Value(TensorType.of(t, (3,))) for t in types]


def test_a_number_beside_a_condition_takes_the_type_of_the_other_number():
    b = Builder()
    c, x = values("bool", "f64")
    assert str(b.select(c, x, 0.0).type) == "f64[3]"
    assert str(b.select(c, 0.0, x).type) == "f64[3]"
    assert str(b.select(c, x, 2).type) == "f64[3]"


def test_a_number_beside_conditions_only_has_the_type_it_has_alone():
    b = Builder()
    (c,) = values("bool")
    assert str(b.select(c, 1.0, 0.0).type) == "f32[3]"
    assert str(b.select(c, 1, 0).type) == "i32[3]"
    assert str(b.select(c, np.float64(1), np.float64(0)).type) == "f64[3]"
    lanes = Value(VectorType(c.dtype, 8))
    assert str(b.select(lanes, 1.0, 0.0).type) == "f32x8"


def test_a_bool_goes_with_the_bool_operand():
    b = Builder()
    x, c = values("f32", "bool")
    condition = b.lt(x, 0.0)
    assert str(b.select(condition, c, False).type) == "bool[3]"
    assert str(b.logical_and(c, True).type) == "bool[3]"


@pytest.mark.parametrize("value", [0.5, np.float32(0.5)])
def test_a_float_beside_integers_stays_an_error(value):
    (x,) = values("i32")
    with pytest.raises(FluxError, match="FX0201"):
        Builder().add(x, value)


def test_a_number_beside_a_bool_is_the_type_rules_to_refuse():
    (c,) = values("bool")
    with pytest.raises(FluxError, match="FX0"):
        Builder().add(c, 0.5)
