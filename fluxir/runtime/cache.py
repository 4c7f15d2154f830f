"""Owns the compile cache: finished compilations on disk, found by the structural key of what was compiled.

One entry is one file: a magic line, a JSON header (metadata, names and sizes of the contained files), the contents,
and a digest of all of it (see `_digest`). Entries are mapped, not read: large weights are views of the file. Invariants:

- Nothing is trusted before its digest is checked, and the directory must belong to this user, be no symbolic link and
be
  closed to others: the digest protects from damage, the ownership from other people. No pickle, nothing is executed.
- Entries appear by rename, so readers in any number of processes see a whole entry or none. No locks are needed:
writers of
  one key write the same contents.
- A damaged entry is removed and counts as a miss: the caller compiles again.
- The sum of entry sizes stays under ``max_bytes`` by removing what was used least recently (the time of last use is the
  file's modification time). Between scans a process adds at most `_SCAN_EVERY` entries.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from .. import config
from ..errors import FluxError, error

__all__ = ["Cache", "Entry", "Explanation", "Summary", "default_dir", "open_cache"]

_MAGIC = b"FLUXIR-CACHE-2\n"
_OBJECTS = "objects-1"
_SUFFIX = ".fxc"
_TEMP = ".tmp-"
_STALE_SECONDS = 3600.0
_SCAN_EVERY = 32
_HEADER = struct.Struct("<Q")
_MAX_HEADER = 64 * 2**20
_DIGEST = 32
_ALIGNMENT = 64  # of the first file: its arrays are used where they lie
_PART = 4 * 2**20  # bytes that one thread hashes at a time
_THREADS = 8  # hashing at once, at most: more than memory feeds
_NAME = re.compile(r"[0-9a-f]{64}\.fxc")


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished compilation: ``files`` by name (object code, PTX, manifest ...), read-only views of the mapped entry, which
    stays mapped as long as there is one; and the caller's JSON ``meta``."""

    digest: str
    files: dict[str, memoryview]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """What `Cache.ls` shows of an entry. ``created`` and ``used`` are seconds since 1970, ``size`` is in bytes on
    disk."""

    digest: str
    size: int
    created: float
    used: float
    files: dict[str, int]
    meta: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "digest": self.digest,
            "size": self.size,
            "created": self.created,
            "used": self.used,
            "files": self.files,
            "meta": self.meta,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """An entry and why it is an entry of its own: ``differs`` maps the digest of every entry of the same
    ``meta["name"]`` to the names in ``meta["key_parts"]`` (program, target, settings, versions ...) whose values
    differ."""

    summary: Summary
    intact: bool
    differs: dict[str, list[str]]


def default_dir() -> str:
    """The cache directory in force: the setting ``cache_dir``, else the platform's cache directory for this user."""
    chosen = config.get().cache_dir
    if chosen is not None:
        return chosen
    import platformdirs

    return platformdirs.user_cache_dir("fluxir", appauthor=False)


def open_cache() -> Cache | None:
    """The cache that the settings describe, or None where the setting ``cache`` is off."""
    settings = config.get()
    return Cache(default_dir(), settings.cache_size) if settings.cache else None


class Cache:
    """A cache in ``directory`` of at most ``max_bytes``. Making one touches nothing; the first `put` creates the
    directory.

    Every method raises FX0805 where the directory is not safe to use and FX0806 where the system refuses access.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        self.path = os.path.abspath(os.fspath(directory))
        self.max_bytes = max_bytes
        self._puts = 0
        self._estimate = -1

    @staticmethod
    def digest(key: bytes | str) -> str:
        """The name of the entry for ``key``: 64 hexadecimal digits."""
        data = key.encode() if isinstance(key, str) else key
        return hashlib.sha256(b"fluxir cache key\0" + data).hexdigest()

    def get(self, key: bytes | str) -> Entry | None:
        """The entry stored under ``key``, marked as used now; None where there is none or it was damaged (then it is
        gone)."""
        digest = self.digest(key)
        with self._directory(create=False) as directory:
            if directory is None:
                return None
            found = _read_entry(directory, digest)
            return None if found is None else found[0]

    def put(self, key: bytes | str, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bool:
        """Store ``files`` and JSON-able ``meta`` under ``key``; False where the entry alone exceeds ``max_bytes``."""
        digest = self.digest(key)
        data = _encode(digest, files, meta)
        if len(data) > self.max_bytes:
            return False
        for attempt in (1, 2):
            try:
                with self._directory(create=True) as directory:
                    assert directory is not None
                    _write_entry(directory, digest + _SUFFIX, data)
                    self._bound(directory, len(data))
                return True
            except FileNotFoundError as gone:
                # Someone removed the directory between our opening and our writing; once is bad luck, twice is a problem.
                if attempt == 2:
                    raise _unusable(self.path, gone) from gone
        raise AssertionError("unreachable")

    def ls(self) -> list[Summary]:
        """All entries, the most recently used first; damaged ones are left out (`verify` finds them)."""
        with self._directory(create=False) as directory:
            if directory is None:
                return []
            rows = [_summary(directory, name) for name in _names(directory)]
        return sorted((row for row in rows if row is not None), key=lambda row: (-row.used, row.digest))

    def explain(self, prefix: str) -> Explanation:
        """The entry whose digest starts with ``prefix``. Raises FX0807 where none does, or several do."""
        rows = self.ls()
        found = [row for row in rows if prefix and row.digest.startswith(prefix.lower())]
        if len(found) != 1:
            what = "no entry" if not found else f"{len(found)} entries"
            raise error(
                "FX0807",
                f"{what} of the compile cache start with {prefix!r}",
                help="`fluxir cache ls` lists the entries; give more digits of one",
            )
        with self._directory(create=False) as directory:
            intact = directory is not None and _check(directory, found[0].digest + _SUFFIX)
        return Explanation(found[0], intact, _differences(found[0], rows))

    def verify(self) -> tuple[int, list[str]]:
        """Check the digest of every entry, and remove the damaged. Returns (how many are intact, digests removed)."""
        intact, removed = 0, []
        with self._directory(create=False) as directory:
            for name in [] if directory is None else _names(directory):
                assert directory is not None
                if _check(directory, name):
                    intact += 1
                else:
                    _remove(directory, name)
                    removed.append(name.removesuffix(_SUFFIX))
        return intact, removed

    def prune(self, max_bytes: int | None = None, unused_seconds: float | None = None) -> tuple[int, int]:
        """Remove entries not used for ``unused_seconds``, then the least recently used until at most ``max_bytes`` (the
        cache's own bound if None; 0 empties it) are left. Returns (entries removed, bytes removed)."""
        with self._directory(create=False) as directory:
            if directory is None:
                return 0, 0
            limit = self.max_bytes if max_bytes is None else max_bytes
            self._estimate = -1
            return _evict(directory, limit, unused_seconds)[:2]

    def size(self) -> int:
        """The bytes all entries take."""
        with self._directory(create=False) as directory:
            return 0 if directory is None else sum(size for _, size, _ in _stats(directory))

    def _bound(self, directory: int, added: int) -> None:
        """Keep the sum of sizes under the bound, looking at the disk only when our own count says it may be needed."""
        self._puts += 1
        self._estimate += added
        if self._estimate < added or self._estimate > self.max_bytes or self._puts % _SCAN_EVERY == 0:
            self._estimate = _evict(directory, self.max_bytes, None, keep_free=True)[2]

    @contextlib.contextmanager
    def _directory(self, create: bool) -> Iterator[int | None]:
        """A descriptor of the directory that holds the entries, checked to be safe; None where it does not exist.

        All access goes through the descriptor, so nobody can swap the directory between the check and the use.
        """
        outer = inner = None
        try:
            outer = _open_checked(self.path, None, self.path, create)
            inner = None if outer is None else _open_checked(_OBJECTS, outer, os.path.join(self.path, _OBJECTS), create)
            yield inner
        except FluxError:
            raise
        except FileNotFoundError:
            raise
        except OSError as reason:
            raise _unusable(self.path, reason) from reason
        finally:
            for descriptor in (outer, inner):
                if descriptor is not None:
                    os.close(descriptor)


# -- the directory -----------------------------------------------------------------------------------------------------


def _open_checked(name: str, parent: int | None, shown: str, create: bool) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            return None
        if parent is None:
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = _open_no_follow(name, flags, parent, shown)
    except OSError as reason:
        raise _refused(shown, reason) from reason
    facts = os.fstat(descriptor)
    problem = ""
    if facts.st_uid != os.geteuid():
        problem = f"it belongs to user {facts.st_uid}, and this process runs as user {os.geteuid()}"
    elif facts.st_mode & 0o022:
        problem = f"others may write to it (mode {stat.S_IMODE(facts.st_mode):04o})"
    if problem:
        os.close(descriptor)
        raise _unsafe(shown, problem)
    return descriptor


def _open_no_follow(name: str, flags: int, parent: int | None, shown: str) -> int:
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise _refused(shown, reason) from reason


def _refused(shown: str, reason: OSError) -> FluxError:
    if reason.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.islink(shown):
        return _unsafe(shown, "it is a symbolic link")
    return _unusable(shown, reason)


def _unsafe(shown: str, problem: str) -> FluxError:
    return error(
        "FX0805",
        f"the cache directory {shown} is not safe: {problem}",
        help="give it to yourself and `chmod 700` it, name another with FLUXIR_CACHE_DIR, or set FLUXIR_CACHE=off",
    )


def _unusable(shown: str, reason: OSError) -> FluxError:
    return error(
        "FX0806",
        f"the cache directory {shown} cannot be used: {reason.strerror or reason}",
        help="name another directory with FLUXIR_CACHE_DIR, or set FLUXIR_CACHE=off",
    )


def _names(directory: int) -> list[str]:
    return sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))


def _stats(directory: int) -> list[tuple[str, int, float]]:
    """(name, bytes, time of last use) of every entry, and of temporary files that no living writer can still own."""
    rows = []
    now = time.time()
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if name.startswith(_TEMP):
                if now - facts.st_mtime > _STALE_SECONDS:
                    _remove(directory, name)
            elif _NAME.fullmatch(name):
                rows.append((name, facts.st_size, facts.st_mtime))
    return rows


def _evict(directory: int, limit: int, unused: float | None, keep_free: bool = False) -> tuple[int, int, int]:
    """Remove by age of last use. Returns (entries removed, bytes removed, bytes left)."""
    rows = sorted(_stats(directory), key=lambda row: (row[2], row[0]))
    total = sum(size for _, size, _ in rows)
    # Going some way below the bound keeps a full cache from scanning again at every put.
    goal = limit * 9 // 10 if keep_free and total > limit else limit
    oldest = -1.0 if unused is None else time.time() - unused
    count = freed = 0
    for name, size, used in rows:
        if total - freed <= goal and used >= oldest:
            break
        _remove(directory, name)
        count += 1
        freed += size
    return count, freed, total - freed


def _remove(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=directory)


# -- one entry ---------------------------------------------------------------------------------------------------------


def _encode(digest: str, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bytes:
    sizes = [[name, len(content)] for name, content in files.items()]
    header = {"key": digest, "created": round(time.time(), 3), "files": sizes, "meta": meta}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(len(_MAGIC) + _HEADER.size + len(text)) % _ALIGNMENT)
    body = b"".join((_MAGIC, _HEADER.pack(len(text)), text, *files.values()))
    return body + _digest(memoryview(body))


def _digest(body: memoryview) -> bytes:
    """The SHA-256 of the SHA-256 of each part of the body, so that several threads can check the weights of a large entry."""
    parts = [body[i : i + _PART] for i in range(0, len(body), _PART)]
    threads = min(len(parts), len(os.sched_getaffinity(0)), _THREADS)
    if threads < 2:
        return hashlib.sha256(b"".join(map(_sha256, parts))).digest()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        return hashlib.sha256(b"".join(pool.map(_sha256, parts))).digest()


def _sha256(part: memoryview) -> bytes:
    return hashlib.sha256(part).digest()


def _contents(file: IO[bytes]) -> memoryview:
    """An entry, mapped. What is mapped stays when the entry is removed, and nothing ever writes to one."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return memoryview(b"")
    return memoryview(
        mmap.mmap(file.fileno(), size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0), mmap.PROT_READ)
    )


def _write_entry(directory: int, name: str, data: bytes) -> None:
    temporary = f"{_TEMP}{os.getpid()}-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(directory, temporary)
        raise


def _read_entry(directory: int, digest: str) -> tuple[Entry, float] | None:
    """The entry of ``digest`` and when it was made. Marks it as used; removes it where it is damaged."""
    name = digest + _SUFFIX
    opened = _open_entry(directory, name)
    if opened is None:
        return None
    with os.fdopen(opened, "rb") as file:
        facts = os.fstat(file.fileno())
        data = _contents(file)
        header = _checked_header(data, digest)
        if header is None:
            # Remove only the file that we read: a good one may have taken its place meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino == facts.st_ino:
                    _remove(directory, name)
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
    files: dict[str, memoryview] = {}
    at = len(_MAGIC) + _HEADER.size + _HEADER.unpack_from(data, len(_MAGIC))[0]
    for file_name, size in header["files"]:
        files[file_name] = data[at : at + size]
        at += size
    return Entry(digest, files, header["meta"]), header["created"]


def _open_entry(directory: int, name: str) -> int | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as reason:
        if reason.errno == errno.ELOOP:
            _remove(directory, name)
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def _checked_header(data: memoryview, digest: str) -> dict[str, Any] | None:
    """The header of a whole, undamaged entry that belongs to ``digest``, else None."""
    body = data[:-_DIGEST]
    if _digest(body) != data[-_DIGEST:]:
        return None
    header = _header(data)
    if header is None or header["key"] != digest:
        return None
    start = len(_MAGIC) + _HEADER.size + _HEADER.unpack_from(body, len(_MAGIC))[0]
    return header if start + sum(size for _, size in header["files"]) == len(body) else None


def _header(data: memoryview) -> dict[str, Any] | None:
    start = len(_MAGIC) + _HEADER.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        return None
    (length,) = _HEADER.unpack_from(data, len(_MAGIC))
    if length > _MAX_HEADER or len(data) < start + length:
        return None
    try:
        header = json.loads(bytes(data[start : start + length]))
    except (ValueError, RecursionError):
        return None
    good = (
        isinstance(header, dict)
        and isinstance(header.get("key"), str)
        and isinstance(header.get("created"), int | float)
        and isinstance(header.get("meta"), dict)
        and isinstance(header.get("files"), list)
        and all(
            isinstance(row, list)
            and len(row) == 2
            and isinstance(row[0], str)
            and isinstance(row[1], int)
            and row[1] >= 0
            for row in header["files"]
        )
    )
    return header if good else None


def _check(directory: int, name: str) -> bool:
    opened = _open_entry(directory, name)
    if opened is None:
        return False
    with os.fdopen(opened, "rb") as file:
        return _checked_header(_contents(file), name.removesuffix(_SUFFIX)) is not None


def _summary(directory: int, name: str) -> Summary | None:
    """What the header says, without reading and checking the contents."""
    opened = _open_entry(directory, name)
    if opened is None:
        return None
    with os.fdopen(opened, "rb") as file:
        facts = os.fstat(file.fileno())
        start = file.read(len(_MAGIC) + _HEADER.size)
        length = _HEADER.unpack_from(start, len(_MAGIC))[0] if len(start) == len(_MAGIC) + _HEADER.size else 0
        header = _header(memoryview(start + file.read(min(length, _MAX_HEADER))))
    if header is None:
        return None
    files = dict(header["files"])
    return Summary(name.removesuffix(_SUFFIX), facts.st_size, header["created"], facts.st_mtime, files, header["meta"])


def _differences(entry: Summary, rows: list[Summary]) -> dict[str, list[str]]:
    parts = entry.meta.get("key_parts")
    if not isinstance(parts, dict) or "name" not in entry.meta:
        return {}
    differs = {}
    for row in rows:
        others = row.meta.get("key_parts")
        if row.digest != entry.digest and row.meta.get("name") == entry.meta["name"] and isinstance(others, dict):
            differs[row.digest] = sorted(k for k in parts.keys() | others.keys() if parts.get(k) != others.get(k))
    return differs
