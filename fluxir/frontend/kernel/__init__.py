"""GPU kernels written in Python: a typed subset of Python, compiled from its syntax tree to kernel functions of loop IR.

`compile_kernel` (compiler.py) is the door; `gpu` holds the names that kernels use as `fx.gpu`. What a name stands for while
a kernel is compiled is told in values.py; statements are compiled in statements.py, expressions in expressions.py, calls
of Python's and our own functions in calls.py. `return`, `break` and `continue` are moved into place first (escapes.py).
"""
