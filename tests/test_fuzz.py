"""Each reader is fed with damaged files for a moment, by a seed of the day; in the deep tier for a minute."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pytest

from fluxir.errors import error
from tests.fuzz import run
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, Target

DAY = int(f"{datetime.date.today():%Y%m%d}")


@pytest.mark.parametrize("name", TARGETS)
def test_readers_refuse_what_is_wrong(name: str, tmp_path: Path) -> None:
    outcome = fuzz(name, 4, DAY, tmp_path)
    assert outcome.files > 20 and outcome.taken, outcome.text()
    assert not outcome.findings, outcome.text()


@pytest.mark.deep
@pytest.mark.parametrize("name", TARGETS)
def test_readers_refuse_what_is_wrong_for_a_minute(name: str, tmp_path: Path) -> None:
    outcome = fuzz(name, 60, DAY + 1, tmp_path)
    assert outcome.files > 200 and not outcome.findings, outcome.text()


class Broken(Target):
    """A reader with every defect that is looked for."""

    name = "broken"

    def make(self, rng: random.Random) -> bytes:
        return rng.choice([b"raise", b"hang", b"memory", b"crash", b"internal", b"fine", b"refused"])

    def read(self, data: bytes) -> None:
        match data:
            case b"raise":
                raise KeyError("x")
            case b"hang":
                while True:
                    pass
            case b"memory":
                bytearray(b"x") * (run.MEMORY + (64 << 20))
            case b"crash":
                import faulthandler
                import os

                faulthandler.disable()  # which would say at length that this happened
                os.abort()
            case b"internal":
                raise error("FX0999", "a defect")
            case b"refused":
                raise error("FX1201")


def test_defects_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "broken", Broken)
    monkeypatch.setattr(run, "SECONDS", 1.5)  # to touch so much memory can take half of one
    found = fuzz("broken", 12, 1, tmp_path).findings
    shown = "\n".join(found)
    for what in ("KeyError", "Hang", "MiB for one file", "ended with -6", "FX0999"):
        assert what in shown, shown
    assert {path.read_bytes() for _, path in found.values()} == {b"raise", b"hang", b"memory", b"crash", b"internal"}
