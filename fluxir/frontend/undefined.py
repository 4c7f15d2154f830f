"""Owns the value of a variable that was not assigned on every way to a place in a `@fx.function`."""

from __future__ import annotations

from typing import Any

from fluxir.errors import error


class Undefined:
    """The value of a variable that was not assigned on the way here; any use is FX0306."""

    def __init__(self, name: str, why: str = "") -> None:
        self.__dict__.update(name=name, why=why)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        from fluxir.frontend.trace import here  # which knows of trees, and they of this class

        raise error("FX0306", f"the variable {self.__dict__['name']!r} may have no value here{self.__dict__['why']}",
                    help="assign it before the if or the loop, with the type it has later", loc=here())  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail()

    __format__ = __str__ = __bool__ = __call__ = __iter__ = __len__ = __getitem__ = __index__ = __float__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = (
        __rmatmul__
    ) = _fail
    __floordiv__ = __mod__ = __pow__ = __rpow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _fail
