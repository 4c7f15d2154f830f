"""Changes to good files: bytes, words of a text, fields of a protobuf message, values of JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.frontend.onnx.wire import Message
from tests.onnx_build import varint

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    64,
    255,
    1000,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 40,
    1 << 62,
    -(1 << 63),
)
TEXTS = ("", "x", "y", "../x", "/etc/passwd", "a" * 300, "\x1b[31m", "é", "batch", "N", "\0", "%s{}", '"', "\u202e")


def number(rng: random.Random) -> int:
    """An integer that programs get wrong."""
    return rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randint(-4, 1 << rng.randint(0, 40))


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, repeated or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return b"\0"
        at = rng.randrange(rng.choice([min(64, len(out)), len(out)]))
        match rng.randrange(5):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + rng.randint(1, 8)]
            case 3:
                out[at:at] = out[at : at + rng.randint(1, 16)]
            case _:
                if rng.random() < 0.2:
                    del out[at:]
    return bytes(out)


def changed_text(text: str, rng: random.Random, words: Sequence[str]) -> str:
    """One or two words replaced, removed, repeated, exchanged, or numbers changed."""
    tokens = re.findall(r"\w+|\s+|.", text, re.S)
    for _ in range(rng.choice([1, 1, 2])):
        if not tokens:
            break
        at, other = (_word(tokens, rng) for _ in range(2))
        match rng.randrange(7):
            case 0:
                tokens[at] = rng.choice(words)
            case 1:
                del tokens[at : at + rng.randint(1, 4)]
            case 2:
                tokens.insert(at, tokens[other])
            case 3:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 4:
                tokens[at:at] = tokens[other : other + rng.randint(1, 40)]
            case 5:
                tokens[at] = tokens[other]
            case _:
                tokens[_word(tokens, rng, str.isdigit)] = str(number(rng) if rng.random() < 0.5 else rng.randint(0, 9))
    return "".join(tokens)


def _word(tokens: Sequence[str], rng: random.Random, wanted: Callable[[str], bool] = lambda t: not t.isspace()) -> int:
    """A place of a word, soon."""
    for _ in range(50):
        at = rng.randrange(len(tokens))
        if wanted(tokens[at]):
            break
    return at


def changed_json(value: Any, rng: random.Random) -> Any:
    """One value somewhere in a tree of JSON replaced, removed or repeated."""
    value = json.loads(json.dumps(value))
    holders = _holders(value)
    if not holders:
        return value
    holder, key = rng.choice(holders)
    choice = rng.randrange(8)
    if choice == 0:
        del holder[key]
    elif choice == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder[key]
    elif choice == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        other = rng.choice(holders)
        holder[key] = rng.choice(
            [
                None,
                True,
                1.5,
                [],
                {},
                [[]],
                number(rng),
                number(rng),
                rng.choice(TEXTS),
                json.loads(json.dumps(other[0][other[1]])),
            ]
        )
    return value


def _holders(value: Any) -> list[tuple[Any, Any]]:
    out, todo = [], [value]
    while todo:
        at = todo.pop()
        for key in list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ():
            out.append((at, key))
            todo.append(at[key])
    return out


# ---- protobuf ------------------------------------------------------------------------------------------------------

Part = list[Any]
"""[field number, wire type, value, message table or None]; the value is an int, bytes, or a list of parts."""


def parts_of(data: bytes, table: Message) -> list[Part]:
    """The fields of a message that is well formed, nested ones too where the table knows them."""
    out: list[Part] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        kind = table.fields[field].kind if field in table.fields else None
        if wire == 0:
            value, at = _varint(data, at)
            out.append([field, 0, value, None])
        elif wire == 2:
            n, at = _varint(data, at)
            inner = kind() if callable(kind) else None
            body = data[at : at + n]
            out.append([field, 2, body if inner is None else parts_of(body, inner), inner])
            at += n
        else:
            n = 8 if wire == 1 else 4
            out.append([field, wire, data[at : at + n], None])
            at += n
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def encoded(parts: list[Part]) -> bytes:
    out = bytearray()
    for field, wire, value, _ in parts:
        out += varint(field << 3 | wire)
        if wire == 0:
            out += varint(value)
        elif wire == 2:
            body = encoded(value) if isinstance(value, list) else value
            out += varint(len(body)) + body
        else:
            out += value
    return bytes(out)


def changed_message(parts: list[Part], rng: random.Random, words: Sequence[bytes]) -> None:
    """One to three fields somewhere in the message changed, removed, repeated, moved or given another's value."""
    for _ in range(rng.randint(1, 3)):
        places = _places(parts)
        if not places:
            return
        holder, i = rng.choice(places)
        part = holder[i]
        match rng.randrange(9):
            case 0:
                del holder[i]
            case 1:
                holder.insert(i, _copy(part))
            case 2:
                other = rng.choice(places)
                holder[i] = _copy(other[0][other[1]])
            case 3:
                j = rng.randrange(len(holder))
                holder[i], holder[j] = holder[j], holder[i]
            case 4:
                table = next((p[3] for p in _chain(parts) if p[2] is holder), None)
                if table is not None:  # a field that this message may have, with a value of the right kind
                    field = rng.choice(list(table.fields))
                    holder.insert(i, _made(field, table.fields[field].kind, rng, words))
            case _:
                if part[1] == 0:
                    part[2] = number(rng)
                elif part[1] == 2 and not isinstance(part[2], list):
                    part[2] = rng.choice([rng.choice(words), rng.choice(TEXTS).encode(), changed_bytes(part[2], rng)])
                elif part[1] != 2:
                    part[2] = rng.randbytes(len(part[2]))


def _made(field: int, kind: Any, rng: random.Random, words: Sequence[bytes]) -> Part:
    if callable(kind):
        return [field, 2, [], kind()]
    if kind == "int":
        return [field, 0, number(rng), None]
    if kind in ("float", "double"):
        return [field, 5 if kind == "float" else 1, rng.randbytes(4 if kind == "float" else 8), None]
    return [field, 2, rng.choice(words), None]


def _chain(parts: list[Part]) -> list[Part]:
    out, todo = [], list(parts)
    while todo:
        p = todo.pop()
        if isinstance(p[2], list):
            out.append(p)
            todo += p[2]
    return out


def _places(parts: list[Part]) -> list[tuple[list[Part], int]]:
    out, todo = [], [parts]
    while todo:
        at = todo.pop()
        for i, p in enumerate(at):
            out.append((at, i))
            if isinstance(p[2], list):
                todo.append(p[2])
    return out


def _copy(part: Part) -> Part:
    return [part[0], part[1], [_copy(p) for p in part[2]] if isinstance(part[2], list) else part[2], part[3]]
