"""Schedules that were found by measuring, in place of those that templates choose.

A template asks `tuned(group, target, name, default, space)`: it gets its default, unless an answer is in force for that question.
`space` gives the values that fields of the schedule may take; `valid` says which combinations make sense. Invariants: a
question is named by the group's structure, the target and the template, never by names of the user; an answer counts only
if it lies in the space that the template gives now, so that no file can bring a schedule about that the template would not
write; without `using` nothing is asked and nothing changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fluxir.errors import error
from fluxir.ir.core import Func

if TYPE_CHECKING:
    from fluxir.schedule.group import Group
    from fluxir.schedule.templates import Schedule

__all__ = ["Answer", "Question", "State", "read_answers", "tuned", "using", "write_answers"]

Answer = Mapping[str, Any]
"""Values of some fields of a schedule."""
FORMAT = 1


@dataclass(frozen=True)
class Question:
    """What a template may choose for a group: `space` holds the values of each field, in an order in which neighbours are
    alike; `default` is one of them."""

    key: str
    name: str
    default: Schedule
    space: Mapping[str, tuple[Any, ...]]
    valid: Callable[[Any], bool]

    def schedule(self, answer: Answer) -> Schedule | None:
        """The schedule that an answer names; None where it is none of this question's."""
        if not set(answer) <= set(self.space) or any(v not in self.space[k] for k, v in answer.items()):
            return None
        found = replace(self.default, **answer)
        return found if found == self.default or self.valid(found) else None

    def answer(self, schedule: Schedule) -> dict[str, Any]:
        """The answer that names a schedule: all fields of the space, so that it does not depend on the default; none where
        it is the default."""
        return {} if schedule == self.default else {k: getattr(schedule, k) for k in self.space}

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """Valid schedules that differ in one field, by one or two places of its list; the nearest first."""
        for step in (1, -1, 2, -2):
            for name, values in self.space.items():
                at = values.index(getattr(schedule, name)) + step
                if 0 <= at < len(values):
                    found = replace(schedule, **{name: values[at]})
                    if self.valid(found):
                        yield found


@dataclass
class State:
    """The answers in force, and the questions that were asked meanwhile."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    asked: dict[str, Question] = field(default_factory=dict)


_state: ContextVar[State | None] = ContextVar("tuned", default=None)


@contextlib.contextmanager
def using(state: State | None) -> Iterator[None]:
    """Answer the questions of templates from `state` inside a `with` block."""
    token = _state.set(state)
    try:
        yield
    finally:
        _state.reset(token)


S = TypeVar("S", bound="Schedule")


def tuned(
    group: Group,
    target: Any,
    name: str,
    default: S,
    space: Mapping[str, Collection[Any]],
    valid: Callable[[S], bool] = lambda schedule: True,
) -> S:
    """The schedule for a group: `default`, or the answer in force to this question. A value of the default that is not in
    the space belongs to it all the same."""
    state = _state.get()
    if state is None:
        return default
    text = "\n".join([name, Func("", group.block).digest, target.fingerprint()])
    key = hashlib.sha256(text.encode()).hexdigest()[:40]
    values = {k: tuple(sorted({*vs, getattr(default, k)})) for k, vs in space.items()}
    question = state.asked[key] = Question(key, name, default, values, valid)
    if key not in state.answers:
        return default
    schedule = question.schedule(state.answers[key])
    if schedule is None:
        warnings.warn(
            f"the tuned schedule of {name} {group.name} is not one of the template's any more: tune again", stacklevel=2
        )
        return default
    return schedule.as_tuned()  # type: ignore[return-value]


# ---- files ------------------------------------------------------------------------------------------------------------------


def read_answers(path: str | Path, missing_ok: bool = False) -> dict[str, dict[str, Any]]:
    """The entries of a file by key: each has `schedule` (an `Answer`) and facts on how it was found. No entries where there
    is no such file and that is `missing_ok`; FX0803 where it cannot be read or is no such document."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as reason:
        if missing_ok and isinstance(reason, FileNotFoundError):
            return {}
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, this version reads {FORMAT}")
        entries = document["schedules"]
        for entry in entries.values():
            if not all(isinstance(v, int | str) for v in entry["schedule"].values()):
                raise ValueError("a field of a schedule is neither a number nor a word")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise error("FX0803", f"{path} holds no tuned schedules: {reason}") from None
    return dict(entries)


def write_answers(path: str | Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a file that `read_answers` reads, sorted by key. FX0804 where that fails."""
    text = json.dumps({"format": FORMAT, "schedules": dict(sorted(entries.items()))}, indent=1) + "\n"
    temporary = Path(f"{path}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as reason:
        raise error("FX0804", f"{path} cannot be written: {reason.strerror or reason}") from None
