"""Python that kernels refuse: always an error of ours, with the line in the user's file and a way out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import fluxir as fx

HEAD = """import math
import numpy as np
import fluxir as fx


@fx.kernel
def k(x: fx.f32["N"]):
"""
REFUSED = [
    ("x[0] = [v for v in (1,2)][0]", "FX0330"),
    ("x[0] = {1:2}[1]", "FX0330"),
    ("x[0] = sum([1.0,2.0])", "FX0330"),
    ("a, *b = (1,2,3)", "FX0330"),
    ("x.foo = 3", "FX0330"),
    ("x[0].bar = 3", "FX0330"),
    ("del x", "FX0330"),
    ("import math", "FX0330"),
    ("try:\n    x[0]=1.0\nexcept Exception:\n    pass", "FX0330"),
    ('with open("f") as f:\n    pass', "FX0330"),
    ("class A:\n    pass", "FX0330"),
    ("global zz; zz = 3", "FX0330"),
    ("def f(*a):\n    return a\nx[0] = f(1)", "FX0330"),
    ('x[0] = f"{x[1]}"', "FX0330"),
    ('x[0] = "abc"', "FX0331"),
    ("x[0] = None", "FX0331"),
    ("x[0] = x", "FX0331"),
    ("x = x[1]; x[0] = 1.0", "FX0330"),
    ("x[0, 1] = 3.0", "FX0331"),
    ('x["a"] = 1.0', "FX0331"),
    ("x[1.5] = 1.0", "FX0331"),
    ("x[None] = 1.0", "FX0331"),
    ("x[...] = 1.0", "FX0331"),
    ("x[x > 0] = 1.0", "FX0331"),
    ("for i in x:\n    pass", "FX0331"),
    ("for i in range(x[0]):\n    pass", "FX0331"),
    ("for i in range(0, 10, 0):\n    pass", "FX0331"),
    ("for i in fx.gpu.static_range(5000):\n    x[0] += 1.0", "FX0331"),
    ("while x:\n    pass", "FX0331"),
    ("if x:\n    pass", "FX0331"),
    ("x[0] = 1.0 if x else 2.0", "FX0331"),
    ("x[0] = x[1] and x[2]", "FX0330"),
    ("x[0] = not x[1]", "FX0331"),
    ("x[0] = x[1] is x[2]", "FX0330"),
    ("assert x", "FX0331"),
    ('assert x[0] > 0, f"bad {x[0]}"', "FX0330"),
    ("return 3", "FX0331"),
    ("yield 3", "FX0330"),
    ("raise ValueError", "FX0330"),
    ("x[0] = math.gamma(x[1])", "FX0330"),
    ("x[0] = math.nope(x[1])", "FX0331"),
    ("x[0] = np.sum(x)", "FX0330"),
    ("x[0] = fx.sum(x)", "FX0330"),
    ("x[0] = fx.zeros(3)", "FX0331"),
    ("x[0] = len(x)", "FX0331"),
    ("x[0] = max(x)", "FX0331"),
    ("x[0] = min()", "FX0331"),
    ("x[0] = abs()", "FX0331"),
    ('x[0] = int("3")', "FX0331"),
    ("x[0] = round(x[1], 2)", "FX0331"),
    ("x[0] = x[0] @ x[1]", "FX0330"),
    ("x[0] = 1 / 0", "FX0331"),
    ("x[0] = 2 ** 100", "FX0217"),
    ("x[0] = x[1] << 2", "FX0209"),
    ("x[0] = ~x[1]", "FX0331"),
    ("x[0] = 1e40", "FX0217"),
    ("x[0] = 3.5e38", "FX0217"),
    ("x[0] = fx.i8(300)", "FX0331"),
    ("fx.gpu.shared(5)", "FX0331"),
    ('fx.gpu.shared((3,), "nope")', "FX0209"),
    ("fx.gpu.shared((-3,), fx.f32)", "FX0331"),
    ("fx.gpu.local((len(x),), fx.f32)", "FX0331"),
    ("fx.gpu.thread_id(7)", "FX0331"),
    ("fx.gpu.thread_id.w", "FX0331"),
    ("fx.gpu.nope()", "FX0331"),
    ("fx.gpu.atomic_add(x, 0)", "FX0331"),
    ("fx.gpu.atomic_add(x, (0,1), 1.0)", "FX0331"),
    ("fx.gpu.atomic_add(3.0, 0, 1.0)", "FX0331"),
    ("fx.gpu.atomic_and(x, 0, 1.0)", "FX0209"),
    ("fx.gpu.shuffle_xor(x, 1)", "FX0331"),
    ("fx.gpu.shuffle_xor(x[0], 1.5)", "FX0331"),
    ("fx.gpu.printf(x[0])", "FX0331"),
    ('fx.gpu.printf("%d")', "FX0331"),
    ('fx.gpu.printf("%d %d", 1)', "FX0331"),
    ('fx.gpu.printf("%q", 1)', "FX0331"),
    ('print("a", x)', "FX0330"),
    ("print(x[0], file=3)", "FX0330"),
    ("fx.gpu.mma(x[0], x[1], x[2])", "FX0331"),
    ("fx.gpu.mma_load_a(x, 0, 0)", "FX0331"),
    ("fx.gpu.async_copy(x, 0, x, 0, 4)", "FX0331"),
    ("s = fx.gpu.shared((8,), fx.f32); fx.gpu.async_copy(s, 0, x, 0, 3)", "FX0331"),
    ("v = x.load(0, lanes=4); x[0] = v", "FX0331"),
    ("v = x.load(0, lanes=4); x[0] = v[fx.gpu.thread_id.x]", "FX0331"),
    ("v = x.load(0, lanes=4); x.store(0, v + x.load(4, lanes=2))", "FX0331"),
    ("x[0] = fx.gpu.vector(1, x[0], fx.f64(2.0))[5]", "FX0331"),
    ("x.store(1.0)", "FX0331"),
    ("q = x.shape[1]", "FX0331"),
    ("a, b = x[0]", "FX0331"),
    ("t = (x[0], 1); t[0] = 3", "FX0330"),
    ("t = (1, x[0]); x[0] = t[fx.gpu.thread_id.x]", "FX0331"),
    ("z = z + 1", "FX0331"),
    ("if x[0] > 0:\n    u = (1.0, 2.0)\nelse:\n    u = 1.0\nx[0] = u[0]", "FX0331"),
    ('if x[0] > 0:\n    u = "a"\nelse:\n    u = "b"\nx[0] = 1.0 if u == "a" else 2.0', "FX0331"),
    ("if x[0] > 0:\n    u = None\nelse:\n    u = x[1]\nx[0] = 1.0", "FX0331"),
    ("u = None\nfor i in range(3):\n    u = x[i]\nx[0] = u", "FX0331"),
    ("match x[0]:\n    case 1: pass", "FX0330"),
    ('x[0] = eval("3")', "FX0330"),
    ('x[0] = getattr(x, "size")', "FX0330"),
    ("x[0] = isinstance(x, int)", "FX0330"),
    ("x[0] = hash(x[1])", "FX0330"),
    ('exec("x=3")', "FX0330"),
    ("x[0] = fx.gpu", "FX0331"),
    ("x[0] = print", "FX0331"),
    ("fx.gpu.barrier(3)", "FX0331"),
    ("x[0] = __name__", "FX0331"),
    ("def g(v):\n    if v > 0:\n        return 1.0\nx[0] = g(x[0])", "FX0331"),
    (
        "def g(v):\n    for i in range(3):\n        if v > i:\n            return v\n    return 0.0\nx[0] = g(x[0])",
        "FX0331",
    ),
]


@pytest.mark.parametrize(("body", "code"), REFUSED, ids=[b.replace("\n", ";")[:40] for b, _ in REFUSED])
def test_refused_with_line_and_hint(body: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.py"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in body.split("\n")))
    spec = importlib.util.spec_from_file_location("refused", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(fx.FluxError) as e:
        module.k.func()
    assert e.value.code == code, e.value.render()
    assert e.value.loc is not None and Path(e.value.loc.file) == path and e.value.loc.line >= 7
    assert e.value.help
