"""The compile cache: round trips, damage, unsafe directories, eviction, and many processes at once."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from fluxir import config
from fluxir.errors import FluxError
from fluxir.runtime.cache import Cache, default_dir, open_cache


def make(tmp_path: Path, max_bytes: int = 1 << 20) -> Cache:
    return Cache(tmp_path / "cache", max_bytes)


def entry_files(cache: Cache) -> list[Path]:
    return sorted(Path(cache.path).glob("objects-1/*.fxc"))


def test_round_trip_keeps_contents_and_metadata(tmp_path: Path) -> None:
    cache = make(tmp_path)
    files = {"entry.o": bytes(range(256)) * 5, "empty": b"", "kernel.ptx": b".version 7.0"}
    meta = {"name": "fwd", "key_parts": {"target": "cpu"}, "ms": 1.5}
    assert cache.get(b"key") is None
    assert cache.put(b"key", files, meta) is True
    entry = cache.get(b"key")
    assert entry is not None and entry.files == files and entry.meta == meta
    assert cache.get("key") is not None, "text and its UTF-8 bytes are the same key"
    assert cache.get("other") is None


def test_directories_and_files_are_private(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    assert stat.S_IMODE(os.stat(cache.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(Path(cache.path) / "objects-1").st_mode) == 0o700
    assert stat.S_IMODE(entry_files(cache)[0].stat().st_mode) == 0o600


def test_reading_an_absent_cache_creates_nothing(tmp_path: Path) -> None:
    cache = make(tmp_path)
    assert cache.get("k") is None and cache.ls() == [] and cache.verify() == (0, []) and cache.prune() == (0, 0)
    assert cache.size() == 0 and not Path(cache.path).exists()


def damage_flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [damage_flip, lambda d: b"", lambda d: d[:-1], lambda d: d[:20], lambda d: b"\0" * len(d), lambda d: d + b"x"],
    ids=["flipped bit", "empty", "cut short", "only a head", "zeros", "too long"],
)
def test_damaged_entries_are_misses_and_go_away(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    cache = make(tmp_path)
    cache.put("k", {"a": b"content" * 50}, {"name": "f"})
    path = entry_files(cache)[0]
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("k") is None
    assert not path.exists()
    cache.put("k", {"a": b"again"}, {})
    entry = cache.get("k")
    assert entry is not None and entry.files == {"a": b"again"}


@pytest.mark.parametrize("at", [0.3, 0.7, 0.999])
def test_damage_in_any_part_of_a_large_entry_is_found(tmp_path: Path, at: float) -> None:
    cache = make(tmp_path, max_bytes=2**30)
    content = bytes(range(256)) * (9 * 2**20 // 256)  # three parts, which threads hash
    assert cache.put("k", {"a": content}, {})
    entry = cache.get("k")
    assert entry is not None and entry.files == {"a": content}
    path = entry_files(cache)[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.unlink()  # a mapped file is not written to
    path.write_bytes(data)
    assert cache.get("k") is None and not path.exists()


def test_what_an_entry_gave_stays_when_it_is_removed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"content" * 5000}, {})
    entry = cache.get("k")
    assert entry is not None
    cache.prune(max_bytes=0)
    assert cache.get("k") is None and entry.files["a"] == b"content" * 5000
    assert entry.files["a"].readonly


@pytest.mark.parametrize("name", ["f", "a name", "a name that is somewhat longer"])
def test_the_first_file_is_aligned_for_its_arrays(tmp_path: Path, name: str) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": bytes(64)}, {"name": name})
    entry = cache.get("k")
    assert entry is not None
    assert np.frombuffer(entry.files["a"], np.uint8).ctypes.data % 64 == 0


def test_an_entry_under_a_wrong_name_is_not_believed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    cache.put("other", {"a": b"2"}, {})
    directory = Path(cache.path) / "objects-1"
    (directory / f"{cache.digest('k')}.fxc").write_bytes((directory / f"{cache.digest('other')}.fxc").read_bytes())
    assert cache.get("k") is None
    assert cache.get("other") is not None


def test_verify_removes_the_damaged_only(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for key in "abc":
        cache.put(key, {"a": key.encode() * 100}, {})
    bad = Path(cache.path) / "objects-1" / f"{cache.digest('b')}.fxc"
    bad.write_bytes(damage_flip(bad.read_bytes()))
    assert cache.verify() == (2, [cache.digest("b")])
    assert cache.verify() == (2, [])


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    for action in (lambda c: c.get("k"), lambda c: c.put("k", {}, {}), lambda c: c.ls()):
        with pytest.raises(FluxError, match="symbolic link") as caught:
            action(make(tmp_path))
        assert caught.value.code == "FX0805" and caught.value.exit_code == 74
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_entry_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    path = entry_files(cache)[0]
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert cache.get("k") is None
    assert (tmp_path / "moved").exists()


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    os.chmod(cache.path, 0o777)
    with pytest.raises(FluxError, match="others may write") as caught:
        cache.get("k")
    assert caught.value.code == "FX0805"


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(FluxError, match=f"belongs to user {owner}"):
        cache.get("k")


def test_a_path_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("hello")
    with pytest.raises(FluxError) as caught:
        make(tmp_path).put("k", {}, {})
    assert caught.value.code == "FX0806"
    assert (tmp_path / "cache").read_text() == "hello"


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for age, key in enumerate("abcd"):
        cache.put(key, {"a": b"x" * 1000}, {})
        when = time.time() - 1000 + age
        os.utime(Path(cache.path) / "objects-1" / f"{cache.digest(key)}.fxc", (when, when))
    assert cache.get("a") is not None  # used just now, so b is the oldest
    one = cache.size() // 4
    removed, freed = cache.prune(max_bytes=2 * one + 50)
    assert removed == 2 and freed >= 2 * 1000
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_the_bound_holds_after_puts(tmp_path: Path) -> None:
    cache = make(tmp_path, max_bytes=20_000)
    for number in range(200):
        assert cache.put(f"k{number}", {"a": os.urandom(1000)}, {})
        assert cache.size() <= 20_000
    assert cache.get("k199") is not None
    assert cache.put("huge", {"a": b"x" * 30_000}, {}) is False
    assert cache.get("huge") is None


def test_prune_by_age_and_all(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("old", {"a": b"1"}, {})
    path = entry_files(cache)[0]
    os.utime(path, (1, 1))
    cache.put("new", {"a": b"1"}, {})
    assert cache.prune(unused_seconds=3600)[0] == 1
    assert cache.get("old") is None and cache.get("new") is not None
    assert cache.prune(max_bytes=0)[0] == 1 and cache.ls() == []


def test_stale_temporary_files_are_swept_and_fresh_ones_kept(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    stale, fresh = (Path(cache.path) / "objects-1" / name for name in (".tmp-1-a", ".tmp-2-b"))
    stale.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(stale, (1, 1))
    cache.prune()
    assert not stale.exists() and fresh.exists() and cache.get("k") is not None


def test_ls_and_explain(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("1", {"a.o": b"12345"}, {"name": "fwd", "key_parts": {"target": "cpu", "program": "p"}})
    cache.put("2", {"a.ptx": b"1"}, {"name": "fwd", "key_parts": {"target": "sm_80", "program": "p"}})
    cache.put("3", {"a.ptx": b"1"}, {"name": "other", "key_parts": {"target": "sm_80", "program": "q"}})
    assert {row.digest for row in cache.ls()} == {cache.digest(k) for k in "123"}
    told = cache.explain(cache.digest("1")[:12])
    assert told.intact and told.summary.files == {"a.o": 5} and told.differs == {cache.digest("2"): ["target"]}
    for prefix in ("zz", ""):
        with pytest.raises(FluxError) as caught:
            cache.explain(prefix)
        assert caught.value.code == "FX0807" and caught.value.exit_code == 2


def test_settings_choose_the_cache(tmp_path: Path) -> None:
    with config.override(cache_dir=tmp_path / "mine", cache_size="3MiB"):
        cache = open_cache()
        assert cache is not None and cache.path == str(tmp_path / "mine") and cache.max_bytes == 3 * 2**20
        with config.override(cache=False):
            assert open_cache() is None
    with config.override(cache_dir=None):
        assert os.path.basename(default_dir()) == "fluxir"


def hammer(path: str, seed: int, rounds: int, failures: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """Put, get, damage and prune over few keys; any answer must be the contents of its key."""
    try:
        cache = Cache(path, 40_000)
        for turn in range(rounds):
            key = f"k{(seed * 7 + turn) % 9}"
            content = (key * 400).encode()
            if turn % 3 == seed % 3:
                cache.put(key, {"a": content}, {"name": key})
            entry = cache.get(key)
            if entry is not None and entry.files != {"a": content}:
                failures.put(f"{key} gave {entry.files['a'][:20]!r}")
            if turn % 17 == seed:
                for file in sorted(Path(path).glob("objects-1/*.fxc"))[:1]:
                    try:
                        with open(file, "r+b") as raw:
                            raw.seek(40)
                            raw.write(b"damage")
                    except FileNotFoundError:
                        pass
            if turn % 29 == seed:
                cache.prune(max_bytes=5_000)
            if turn % 31 == seed:
                cache.verify()
                cache.ls()
    except BaseException as reason:
        failures.put(f"process {seed}: {reason!r}")


def test_many_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    path = str(tmp_path / "cache")
    processes = [context.Process(target=hammer, args=(path, seed, 150, failures)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    told = []
    while not failures.empty():
        told.append(failures.get())
    assert told == [] and all(process.exitcode == 0 for process in processes)
    cache = Cache(path, 40_000)
    cache.verify()
    assert cache.verify()[1] == [], "what is left after a sweep is intact"
    assert not list(Path(path).glob("objects-1/.tmp-*"))


def test_contents_survive_a_killed_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"old"}, {})

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FluxError, match="No space left") as caught:
        cache.put("k", {"a": b"new"}, {})
    monkeypatch.undo()
    assert caught.value.code == "FX0806"
    entry = cache.get("k")
    assert entry is not None and entry.files == {"a": b"old"}
    assert [p.name for p in (Path(cache.path) / "objects-1").iterdir()] == [f"{cache.digest('k')}.fxc"]


def test_the_directory_may_vanish_between_uses(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("k", {"a": b"1"}, {})
    import shutil

    shutil.rmtree(cache.path)
    assert cache.get("k") is None
    assert cache.put("k", {"a": b"2"}, {}) and cache.get("k") is not None
