"""Which of an artifact's programs a device runs: the best that it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.target import host

__all__ = ["choose", "runs_on"]

Described = Mapping[str, Any]


def choose(targets: Sequence[Described], device: str | None, shown: str) -> int:
    """The number of the target that `device` (`cpu`, `cuda`, `cuda:1`, `vgpu`, `vgpu:sm_80`) is best served by; None stands for
    this machine's processor, or else for any. An only target is taken: what loads it says whether it fits.

    FX0509 and FX0707 where there are several and none fits.
    """
    if len(targets) == 1:
        return 0
    kind, _, which = (device or "cpu").partition(":")
    if kind == "cpu":
        best = _best_cpu(targets)
        if best is None and device is None and (rest := _gpus(targets)):
            best = max(rest, key=lambda i: _rank(targets[i]))
        if best is None:
            names = ", ".join(str(t["name"]) for t in targets)
            raise error(
                "FX0509",
                f"{shown} holds programs for {names}, and this machine ({host().model}) can run none of them",
                help=f"compile it for --target {host().target}" if host().target else "",
            )
        return best
    found = _gpus(targets)
    capability = _capability(kind, which) if len(found) != 1 else None
    fitting = [i for i in found if capability is None or runs_on(str(targets[i]["name"]), capability)]
    if not fitting:
        names = ", ".join(str(t["name"]) for t in targets)
        own = f"sm_{capability}" if capability is not None else "a GPU"
        raise error(
            "FX0707", f"{shown} holds programs for {names}, and {device} is {own}", help="compile it for the device"
        )
    return max(fitting, key=lambda i: _rank(targets[i]))


def _best_cpu(targets: Sequence[Described]) -> int | None:
    machine = host()
    fitting = [
        i
        for i, t in enumerate(targets)
        if t["kind"] == "cpu"
        and str(t.get("triple", "x86_64")).partition("-")[0] == machine.machine
        and set(t["features"]) <= set(machine.features)
    ]
    # The more of the machine it uses the better; of equals the first.
    return max(fitting, key=lambda i: (len(targets[i]["features"]), -i), default=None)


def _gpus(targets: Sequence[Described]) -> list[int]:
    return [i for i, t in enumerate(targets) if t["kind"] == "nvptx"]


def _capability(kind: str, which: str) -> int | None:
    """The compute capability of a device, 80 for 8.0; None where every target will do."""
    if kind == "vgpu":
        return int(which.removeprefix("sm_").rstrip("af")) if which else None
    from fluxir.runtime import cuda

    return cuda.capability(int(which or 0))


def _rank(t: Described) -> tuple[int, str]:
    """Newer is better, and of one generation the code that only it has."""
    name = str(t["name"])
    return int(name.removeprefix("sm_").rstrip("af")), name[-1] if name[-1] in "af" else ""


def runs_on(target: str, capability: int) -> bool:
    """Whether PTX for `target` runs on a GPU: `sm_80` on 8.0 and later, `sm_90a` on 9.0 alone, `sm_100f` on its family."""
    digits, variant = target.removeprefix("sm_").rstrip("af"), target[-1]
    needed = int(digits)
    if variant == "a":
        return needed == capability
    if variant == "f":
        return needed <= capability and needed // 10 == capability // 10
    return needed <= capability
