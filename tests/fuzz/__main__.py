"""`python -m tests.fuzz TARGET --seconds 60`: exit status 1 where something was found, and the files that show it."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed readers with files that are wrong.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="how long, for each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=1, help="how many targets at a time (default: 1)")
    parser.add_argument("--seed", type=int, default=None, help="the seed (default: of the day)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-found"), help="where files go that show a defect")
    parser.add_argument("--read", type=Path, default=None, help="read this one file, which was found, once more")
    options = parser.parse_args()
    seed = int(f"{datetime.date.today():%Y%m%d}") if options.seed is None else options.seed
    if options.read is not None:
        TARGETS[options.targets[0]]().read(options.read.read_bytes())
        return 0
    waiting, running, found = list(options.targets or TARGETS), 0, False
    while waiting or running:
        if waiting and running < options.jobs:
            name = waiting.pop(0)
            if os.fork() == 0:  # a process for each target, since what is found may spoil it
                outcome = fuzz(name, options.seconds, seed, options.out)
                print(outcome.text(), flush=True)
                os._exit(bool(outcome.findings))
            running += 1
        else:
            found |= os.wait()[1] != 0
            running -= 1
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
