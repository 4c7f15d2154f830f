"""Settings: one name in three spellings, validated, overridden by scope."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fluxir import config
from fluxir.errors import FluxError, UsageError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    config.reload()
    yield
    config.reload()


def test_every_setting_has_one_name_in_three_spellings() -> None:
    for name, setting in config.SETTINGS.items():
        assert setting.flag == "--" + name.replace("_", "-") and setting.variable == "FLUXIR_" + name.upper()
        assert setting.doc.endswith(".") and setting.kind
        assert setting.parse(setting.default) == setting.default, f"the default of {name} is allowed"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("num_threads", "4", 4),
        ("num_threads", " 8 ", 8),
        ("cache", "off", False),
        ("cache", "1", True),
        ("cache", "Yes", True),
        ("cache_size", "500M", 500_000_000),
        ("cache_size", "1.5GiB", 3 * 2**29),
        ("cache_size", "12", 12),
        ("cache_size", "3 kB", 3000),
        ("verify", "numeric", "numeric"),
        ("device", "cuda:1", "cuda:1"),
        ("opt_level", "0", 0),
        ("dump_dir", "", None),
        ("target", "sm_90a", "sm_90a"),
        ("max_file_size", "0", 0),
    ],
)
def test_variables_are_parsed(name: str, text: str, value: object) -> None:
    assert getattr(config.reload({config.SETTINGS[name].variable: text}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_threads", "many"),
        ("num_threads", -1),
        ("num_threads", 2.5),
        ("num_threads", True),
        ("num_threads", "9" * 30),
        ("cache", "perhaps"),
        ("cache_size", "2 gigs"),
        ("cache_size", -5),
        ("cache_size", "9e9"),
        ("verify", "always"),
        ("verify", ["off"]),
        ("device", "tpu"),
        ("device", 3),
        ("opt_level", 4),
        ("color", None),
        ("dump_dir", 3),
        ("dump_dir", "a\0b"),
        ("target", "rm -rf /"),
    ],
)
def test_wrong_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        config.get().replace(**{name: value})
    assert caught.value.code == "FX0902" and caught.value.help is not None
    assert config.SETTINGS[name].variable in caught.value.help


def test_a_wrong_variable_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(FluxError, match="FLUXIR_NUM_THREADS cannot be 'x'"):
        config.reload({"FLUXIR_NUM_THREADS": "x"})
    with pytest.raises(FluxError, match=r"no setting FLUXIR_NUM_THREAD\n.*did you mean FLUXIR_NUM_THREADS") as caught:
        config.reload({"FLUXIR_NUM_THREAD": "2"})
    assert caught.value.code == "FX0901"
    config.reload({"FLUXIR_TEST_UPDATE": "1", "OTHER": "x"})


def test_order_of_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXIR_OPT_LEVEL", "1")
    assert config.reload().opt_level == 1
    assert config.environment()["FLUXIR_OPT_LEVEL"] == "1"
    config.configure(opt_level=0)
    assert config.get().opt_level == 0
    with config.override(opt_level=3):
        assert config.get().opt_level == 3
        with config.override(num_threads=1):
            assert (config.get().opt_level, config.get().num_threads) == (3, 1)
        assert config.get().num_threads == 0
    assert config.get().opt_level == 0
    monkeypatch.delenv("FLUXIR_OPT_LEVEL")
    assert config.reload().opt_level == 2


def test_override_ends_with_its_block_and_stays_in_its_thread() -> None:
    seen = []
    with pytest.raises(KeyError), config.override(num_threads=7):
        thread = threading.Thread(target=lambda: seen.append(config.get().num_threads))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == [0] and config.get().num_threads == 0
    with pytest.raises(FluxError, match="no setting nope"), config.override(nope=1):
        raise AssertionError("not reached")


def test_threads_follow_the_affinity_of_the_process() -> None:
    assert config.get().threads() == len(os.sched_getaffinity(0))
    assert config.get().replace(num_threads=5).threads() == 5


def test_the_key_holds_what_changes_code_and_only_that() -> None:
    key = dict(config.get().key())
    assert {"opt_level", "accuracy"} <= set(key) and not {"num_threads", "color", "cache_dir"} & set(key)
    assert config.get().replace(accuracy="fast").key() != config.get().key()
    assert config.get().replace(num_threads=3, color="always").key() == config.get().key()


def test_paths_are_absolute_and_the_home_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.get().replace(dump_dir="~/x").dump_dir == "/home/someone/x"
    assert config.get().replace(dump_dir="x").dump_dir == os.path.join(os.getcwd(), "x")


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert config.wants_color(True) and not config.wants_color(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not config.wants_color(True)
    with config.override(color="always"):
        assert config.wants_color(False)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not config.wants_color(True)
    with config.override(color="never"):
        assert not config.wants_color(True)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        config.get().opt_level = 1  # type: ignore[misc]
