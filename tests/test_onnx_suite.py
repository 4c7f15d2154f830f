"""The ONNX backend suite: an eighth of its cases by the interpreter each day; compiled, in shares, in the deep tier."""

from __future__ import annotations

import datetime
from collections import Counter

import pytest

from tests.onnx_suite import RANDOM, cases, outcome


def check(share: slice, compiled: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    bad = []
    for case in cases()[share]:
        if RANDOM.search(case.name):
            continue
        result = outcome(case, compiled)
        counts[result.split(":")[0]] += 1
        if not result.startswith(("pass", "refused")):
            bad.append(f"{case.name}: {result}")
    assert not bad, "\n".join(bad)
    return counts


def test_a_share_of_the_suite() -> None:
    day = datetime.date.today().timetuple().tm_yday
    counts = check(slice(day % 8, None, 8), compiled=False)
    assert counts["pass"] >= 0.9 * sum(counts.values()), counts


@pytest.mark.deep
@pytest.mark.parametrize("share", range(32))
def test_a_share_of_the_suite_compiled(share: int) -> None:
    counts = check(slice(share, None, 32), compiled=True)
    assert counts["pass"] >= 0.85 * sum(counts.values()), counts
