"""`fx.linalg`: the Array API's linear algebra extension and NumPy's names, with derivatives of every order.

The room stands on the frontend (the loops in `frontend/linalg_loops.py`) and on `custom` (rules of their own for what is
not differentiated through its loop). `solving` owns Cholesky, LU and what follows from them; `spectral` QR, eigenvalues
and singular values; `functions` what is made of those. docs/design/linear-algebra.md says why it is so.
"""

from fluxir.frontend.api_linalg import cross, matmul, matrix_transpose, multi_dot, outer, tensordot, vecdot, vector_norm
from fluxir.linalg.functions import (
    cond,
    diagonal,
    expm,
    lstsq,
    matrix_norm,
    matrix_power,
    matrix_rank,
    norm,
    pinv,
    trace,
)
from fluxir.linalg.solving import (
    SlogdetResult,
    cho_solve,
    cholesky,
    det,
    inv,
    lu,
    lu_factor,
    lu_solve,
    slogdet,
    solve,
    solve_triangular,
)
from fluxir.linalg.spectral import EighResult, QRResult, SVDResult, eigh, eigvalsh, qr, svd, svdvals

__all__ = [
    "EighResult", "QRResult", "SVDResult", "SlogdetResult", "cho_solve", "cholesky", "cond", "cross", "det", "diagonal",
    "eigh", "eigvalsh", "expm", "inv", "lstsq", "lu", "lu_factor", "lu_solve", "matmul", "matrix_norm", "matrix_power",
    "matrix_rank", "matrix_transpose", "multi_dot", "norm", "outer", "pinv", "qr", "slogdet", "solve",
    "solve_triangular", "svd", "svdvals", "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip
