"""What it costs to start: `import fluxir`, `fluxir --version`, a first compiled call, each in a fresh process."""

from __future__ import annotations

from bench.measure import Report, interleaved, median, run_python, shown

FIRST_CALL = "import numpy as np, fluxir as fx; fx.jit(lambda x: x + 1)(np.ones(8, np.float32))"


def run(quick: bool) -> Report:
    """Interleaved rounds; the time of an empty Python process is shown, and subtracted in the last column."""
    calls = {
        "python -c pass": lambda: run_python("-c", "pass"),
        "import numpy": lambda: run_python("-c", "import numpy"),
        "import fluxir": lambda: run_python("-c", "import fluxir"),
        "fluxir --version": lambda: run_python("-m", "fluxir.cli", "--version"),
        "first call of a jit function (cached code)": lambda: run_python("-c", FIRST_CALL),
    }
    for call in calls.values():
        call()
    times = interleaved(calls, 5 if quick else 21)
    base = median(times["python -c pass"])
    rows = [[n, shown(median(t)), shown(min(t)), f"{(median(t) - base) * 1e3:.0f} ms"] for n, t in times.items()]
    return Report("Start-up", ["", "median", "best", "above python"], rows, {"seconds": times})
