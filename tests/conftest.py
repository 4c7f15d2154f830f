"""What every test shares: an empty compile cache, a deterministic hypothesis, and the rotation of the long tests.

Tests marked `deep` are too long to run all each time, and a test that never runs proves nothing. So every run takes a
share of them: each test belongs to one of N groups by its name, and the day of the year picks the group. The share is an
option (`--deep-share 1/8`, `all`, `none`); a test that is named by its `::` id, or chosen with `-m`, always runs.
"""

from __future__ import annotations

import datetime
import fractions
import os
import tempfile
import zlib

# Before anything imports numpy: two workers on two cores, each with numpy's own threads, would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("explore", hypothesis.settings.get_profile("house"), derandomize=False)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fluxir")
    group.addoption(
        "--deep-share", default="1/8", help="share of the deep tests to run: 1/N, all or none (default: 1/8)"
    )
    group.addoption("--deep-day", type=int, default=None, help="the day that picks the share (default: today's number)")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.deep_day is None:  # set once, in the main process: workers that start after midnight agree with it
        config.option.deep_day = datetime.date.today().timetuple().tm_yday
    deep_groups(config.option.deep_share)
    # Every test process gets its own empty compile cache: no test reads what an earlier version of the code compiled.
    # Set here, before a test module can import fluxir, because the settings are read from the environment once.
    cache = tempfile.TemporaryDirectory(prefix="fluxir-test-cache-")
    os.environ["FLUXIR_CACHE_DIR"] = cache.name
    config.add_cleanup(cache.cleanup)


def deep_groups(share: str) -> int:
    """Into how many groups `--deep-share` splits the deep tests: 1 for `all`, 0 for `none`."""
    if share in ("all", "none"):
        return 1 if share == "all" else 0
    try:
        part = fractions.Fraction(share)
    except (ValueError, ZeroDivisionError):
        part = fractions.Fraction(0)
    if part <= 0 or part.numerator != 1:
        raise pytest.UsageError(f"--deep-share {share}: write 1/N, all or none")
    return part.denominator


def is_due(nodeid: str, groups: int, day: int) -> bool:
    """Whether the deep test `nodeid` belongs to the group of `day`, of `groups` groups."""
    return groups > 0 and zlib.crc32(nodeid.encode()) % groups == day % groups


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    groups, day = deep_groups(config.option.deep_share), config.option.deep_day
    waits = [item for item in items if item.get_closest_marker("deep") and not is_due(item.nodeid, groups, day)]
    if waits:
        config.hook.pytest_deselected(items=waits)
        dropped = set(waits)
        items[:] = [item for item in items if item not in dropped]


def pytest_report_header(config: pytest.Config) -> str:
    return f"deep tests: share {config.option.deep_share}, day {config.option.deep_day} (--deep-share, --deep-day)"
