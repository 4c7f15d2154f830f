"""Which host functions an entry needs, and the size symbols each of them must be given."""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.errors import error
from fluxir.ir.core import Func, Module, Op


def calls(f: Func) -> list[Op]:
    return [op for op in f.walk() if op.name == "call"]


def reachable_from(module: Module, name: str) -> set[str]:
    """Functions called from `name`, directly or not."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for op in calls(module.funcs[todo.pop()]):
            if op.attrs.callee not in seen:
                seen.add(op.attrs.callee)
                todo.append(op.attrs.callee)
    return seen


def reachable(module: Module) -> list[str]:
    """Names of the host functions the entry needs, in the module's order."""
    entry = module.entry
    if entry.level != "host":
        raise error("FX0503", f"the entry @{entry.name} is a {entry.level} function: lower the module first")
    needed = reachable_from(module, entry.name) | {entry.name}
    return [n for n in module.funcs if n in needed]


def host_symbols(module: Module, hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The size symbols each host function needs: its own, its kernels', and what its callees take by name."""
    need: dict[str, set[str]] = {}
    for name in hosts:
        f = module.funcs[name]
        need[name] = set(f.symbols)
        for op in f.walk():
            if op.name == "launch":
                need[name] |= set(module.funcs[op.attrs.callee].symbols)
    changed = True
    while changed:
        changed = False
        for name in hosts:
            for op in calls(module.funcs[name]):
                given = {s for s, _ in (*op.attrs.dims, *op.attrs.sized)}
                more = need[op.attrs.callee] - given - need[name]
                if more:
                    need[name] |= more
                    changed = True
    return {n: tuple(sorted(s)) for n, s in need.items()}
