"""The verb ``cache``: look at, check and prune the compile cache."""

from __future__ import annotations

import re
import time

import click

from .. import config
from ..errors import error
from ..runtime.cache import Cache, Summary, default_dir
from .common import Output, bytes_text, table, verb

__all__ = ["command"]


@click.group("cache", help="Look at, check and prune the compile cache.", no_args_is_help=True)
def command() -> None:
    pass


def _cache() -> Cache:
    """The cache directory in force; looked at also where the setting ``cache`` is off."""
    return Cache(default_dir(), config.get().cache_size)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def _name(row: Summary) -> str:
    parts = row.meta.get("key_parts")
    target = parts.get("target", "") if isinstance(parts, dict) else ""
    return f"{row.meta.get('name', '')} {row.meta.get('target', target)}".strip().split("\n")[0][:60]


@verb("ls", settings=("cache_dir",), help="List the entries, the most recently used first.")
def ls(output: Output) -> None:
    cache = _cache()
    rows = cache.ls()
    data = {
        "path": cache.path,
        "max_bytes": cache.max_bytes,
        "bytes": sum(row.size for row in rows),
        "entries": [row.as_dict() for row in rows],
    }

    def text() -> str:
        now = time.time()
        lines = [(row.digest[:12], bytes_text(row.size), _age(now - row.used), _name(row)) for row in rows]
        used = bytes_text(sum(row.size for row in rows))
        total = f"{len(rows)} entries, {used} of {bytes_text(cache.max_bytes)} in {cache.path}"
        return "\n".join(
            filter(None, [table(lines, ("entry", "size", "used", "what"), right=(1, 2)) if rows else "", total])
        )

    output.result(data, text)


@verb("explain", settings=("cache_dir",), help="Show one entry, and how its key differs from entries of the same name.")
@click.argument("entry")
def explain(output: Output, entry: str) -> None:
    told = _cache().explain(entry)
    row = told.summary
    data = {**row.as_dict(), "intact": told.intact, "differs": told.differs}

    def text() -> str:
        stamp = "%Y-%m-%d %H:%M:%S"
        lines: list[tuple[str, object]] = [
            ("entry", row.digest),
            ("size", bytes_text(row.size)),
            ("created", time.strftime(stamp, time.localtime(row.created))),
            ("last used", time.strftime(stamp, time.localtime(row.used))),
            ("digest", "intact" if told.intact else "DAMAGED"),
        ]
        lines += [(f"file {name}", bytes_text(size)) for name, size in row.files.items()]
        for key, value in row.meta.items():
            lines += [(f"{key}.{k}", v) for k, v in value.items()] if isinstance(value, dict) else [(key, value)]
        lines += [(f"not {other[:12]}", "differs in " + ", ".join(parts)) for other, parts in told.differs.items()]
        return table(lines)

    output.result(data, text)


@verb(
    "verify",
    settings=("cache_dir",),
    help="Check the digest of every entry and remove the damaged; exit status 74 if any was.",
)
def verify(output: Output) -> None:
    cache = _cache()
    intact, removed = cache.verify()
    output.result({"path": cache.path, "intact": intact, "removed": removed}, f"{intact} entries are intact")
    if removed:
        shown = ", ".join(digest[:12] for digest in removed[:8])
        raise error("FX0811", f"{len(removed)} damaged entries were removed: {shown}")


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A time span as seconds: ``90s``, ``15m``, ``12h``, ``7d``."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is no time span: write 90s, 15m, 12h or 7d", ctx, param)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


@verb("prune", settings=("cache_dir", "cache_size"), help="Remove the least recently used entries above --cache-size.")
@click.option("--all", "everything", is_flag=True, help="Remove every entry.")
@click.option(
    "--unused",
    callback=_duration,
    metavar="TIME",
    help="Also remove what was not used for this long: 90s, 15m, 12h, 7d.",
)
def prune(output: Output, everything: bool, unused: float | None) -> None:
    cache = _cache()
    count, size = cache.prune(0 if everything else None, unused)
    left = cache.size()
    data = {"path": cache.path, "removed": count, "removed_bytes": size, "bytes": left}
    output.result(data, f"removed {count} entries, {bytes_text(size)}; {bytes_text(left)} are left")


@verb("path", settings=("cache_dir",), help="Print the directory of the cache.")
def path(output: Output) -> None:
    where = _cache().path
    output.result({"path": where}, where)


for _command in (ls, explain, verify, prune, path):
    command.add_command(_command)
