"""The machine code of a call from Python: `call`, a method that runs a program on arguments that look like earlier ones.

It is the `__call__` of `Routed` (see `route.py`): for each *route* that the object keeps it walks the arguments along the
route's guards, takes the address of every leaf, makes the results, runs the program and puts the results into their tree;
the first route that fits is taken, and where none does the Python function that the object names is called with the same
arguments. Nothing is changed before a route fits.

Invariants: it is called with the interpreter's lock and gives it up only while a program runs, and not at all for a program
whose last run took a few microseconds: handing the lock over costs more than that. Every object that is looked at across
other people's code is held. A route is held while it is in use, so that another thread may replace it. The layouts of
objects are fixed by the binary interfaces of CPython and numpy; `native.py` looks whether they are so before first use.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from fluxir.runtime.writer import I1, I32, I64, PTR, Function, Module, Value

__all__ = [
    "ARENAS", "ARENA_WORDS", "CALLS", "DONATED", "LEAF_WORDS", "RESULT_WORDS", "ROUTE_WORDS", "Code", "Guard", "Leaf",
    "MOST_ROUTES", "Make", "Number", "Result", "Word", "add_call",
]  # fmt: skip

# CPython's PyObject (type 8), tuples (length 16, items 24), and numpy's PyArrayObject_fields.
TYPE, LENGTH, ITEMS, DATA, RANK, SIZES, DESCR, FLAGS = 8, 16, 24, 16, 24, 32, 56, 64
CALLS = 16  # where an object of `Routed` keeps its table

DONATED = 1 << 27
"""A bit of an array's flags that numpy does not use: the array's memory was given away. Views of it inherit the bit."""
_PLAIN, _WRITEABLE = 0x101, 0x400  # C_CONTIGUOUS and ALIGNED
_SHORT = {"x86_64": 30_000, "aarch64": 1_000}  # ticks of a program that keeps the interpreter's lock


class Word(IntEnum):
    """The words of a route."""

    OWNER, SETTINGS, ARGS, NAMED, NAMES, GUARDS, LEAF_COUNT, LEAVES, FIXED_COUNT, FIXED, FIXED_AT = range(11)
    RESULT_COUNT, RESULTS, RESULTS_AT, CONST_COUNT, CONSTS, SLOTS, ENTRY, DIMS, CONTEXT = range(11, 20)
    ARENA_BYTES, ARENAS, TREE, SOLE_COUNT, SOLE, TICKS, FAIL, NOTE = range(20, 28)


class Guard(IntEnum):
    """What a node of an argument or of a result must be; words that follow in brackets."""

    LEAF, IS, EQUAL, LIST, TUPLE, DICT, FIELDS = range(
        7
    )  # [i] [x] [x] [n] [type n] [n (key ...)*] [type n (name ...)*]


class Leaf(IntEnum):
    """The words of a leaf."""

    KIND, TYPE, DESCR, RANK, SIZES, SOLE, SLOT, BYTES, LOW, HIGH = range(10)


class Code(IntEnum):
    """Kinds of leaves: an array, Python's numbers (`DESCR` is a `Number`), a scalar of numpy."""

    ARRAY, FLOAT, INT, BOOL, SCALAR = range(5)


class Number(IntEnum):
    """How a number is stored."""

    F32, F64, I8, I16, I32, I64 = range(6)


class Make(IntEnum):
    """Where a result's array comes from: fresh, fresh and aligned to 64 bytes, a donated leaf's memory, a leaf itself."""

    SMALL, LARGE, DONATED, GIVEN = range(4)


class Result(IntEnum):
    """The words of a result."""

    MAKE, DESCR, RANK, SIZES, BYTES, LEAF = range(6)


ROUTE_WORDS, LEAF_WORDS, RESULT_WORDS = len(Word), len(Leaf), len(Result)
_CURSOR, _ROUTE, _ARGS, _OBJECTS, _NUMBERS = range(5)  # the words of a frame, what the functions of one call share
_ADDRESS, _BYTES, _BUSY = range(3)  # the words of an arena
ARENA_WORDS, ARENAS = 3, 8  # of a program
MOST_ROUTES = 8  # of an object


def add_call(m: Module) -> None:
    """Add the functions to a module."""
    _take(m)
    _walk(m)
    _disjoint(m)
    _fresh(m)
    _build(m)
    _release(m)
    _run(m)
    _attempt(m)
    _call(m)
    _claim(m)


def _incref(f: Function, x: Value) -> None:
    f.python("Py_IncRef", x, result="void")


def _decref(f: Function, x: Value) -> None:
    f.python("Py_DecRef", x, result="void")


def _refuse(f: Function) -> None:
    """An error of Python's in a guard: the arguments do not fit."""
    f.python("PyErr_Clear", result="void")
    f.ret(0)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _take(m: Module) -> None:
    """`take(frame, i, x)`: whether `x` can be leaf `i`; its address goes to the leaf's slot."""
    f = m.function(I1, "take", {"frame": PTR, "i": I64, "x": PTR}, local=True)
    frame, x, i = f["frame"], f["x"], f["i"]
    leaf = frame.pointer(_ROUTE).pointer(Word.LEAVES).item(i, 8 * LEAF_WORDS)
    slot = frame.pointer(_ARGS).item(leaf.word(Leaf.SLOT))
    kind = leaf.word(Leaf.KIND)
    with f.when(x.load(PTR, TYPE).ne(leaf.pointer(Leaf.TYPE))):
        f.ret(0)
    with f.when(kind.eq(Code.ARRAY)):
        rank = leaf.word(Leaf.RANK)
        alike = x.load(PTR, DESCR).eq(leaf.pointer(Leaf.DESCR)) & x.load(I32, RANK).cast("sext", I64).eq(rank)
        with f.when(~alike):
            f.ret(0)
        have, want = x.load(PTR, SIZES), leaf.pointer(Leaf.SIZES)
        with f.count(rank) as k:
            with f.when(have.word(k).ne(want.word(k))):
                f.ret(0)
        flags = x.load(I32, FLAGS)
        with f.when((flags & DONATED).ne(0)):
            f.ret(0)
        sole = leaf.word(Leaf.SOLE).ne(0)
        wanted = sole.choose(_PLAIN | _WRITEABLE, f.constant(_PLAIN, I32))
        held = f.variable(PTR, x)
        with f.when((flags & wanted).ne(wanted)):
            with f.when(sole):
                f.ret(0)
            held.set(f.python("PyArray_NewCopy", x, f.constant(0, I32)))
            with f.when(held.get().is_null()):
                _refuse(f)
        with f.when((flags & wanted).eq(wanted)):
            _incref(f, x)
        frame.pointer(_OBJECTS).store(held.get(), i * 8)
        slot.store(held.get().load(PTR, DATA))
        f.ret(1)
    place = frame.pointer(_NUMBERS).item(i, 16)
    slot.store(place)
    with f.when(kind.eq(Code.SCALAR)):
        f.python("PyArray_ScalarAsCtype", x, place, result="void")
        f.ret(1)
    stored = leaf.word(Leaf.DESCR)
    with f.when(kind.eq(Code.FLOAT)):
        _store_float(f, place, stored, f.python("PyFloat_AsDouble", x, result="double"))
        f.ret(1)
    number = f.variable(I64, x.eq(f.known("True")).cast("zext", I64))
    with f.when(kind.eq(Code.INT)):
        overflow = f.room(8)
        number.set(f.python("PyLong_AsLongLongAndOverflow", x, overflow, result=I64))
        with f.when(overflow.load(I32).ne(0)):
            f.ret(0)
    n = number.get()
    with f.when(n.lt(leaf.word(Leaf.LOW)) | n.gt(leaf.word(Leaf.HIGH))):
        f.ret(0)
    with f.when(stored.le(Number.F64)):
        _store_float(f, place, stored, n.cast("sitofp", "double"))
        f.ret(1)
    place.store(n)  # the machines are little-endian: a narrower number is the first bytes
    f.ret(1)


def _store_float(f: Function, place: Value, stored: Value, x: Value) -> None:
    with f.when(stored.eq(Number.F64)):
        place.store(x)
    with f.when(stored.eq(Number.F32)):
        place.store(x.cast("fptrunc", "float"))


def _walk(m: Module) -> None:
    """`walk(frame, x)`: whether `x` is what the guards from the frame's cursor on say; the cursor moves behind them."""
    f = m.function(I1, "walk", {"frame": PTR, "x": PTR}, local=True)
    frame, x = f["frame"], f["x"]
    node = frame.pointer(_CURSOR)
    which = node.word(0)

    def rest(words: int) -> None:
        frame.store(node.at(8 * words), 8 * _CURSOR)

    def check(item: Value, hold: bool) -> None:
        if hold:
            _incref(f, item)
        good = f.call(I1, "walk", frame, item)
        if hold:
            _decref(f, item)
        with f.when(~good):
            f.ret(0)

    def skip_word() -> Value:
        at = frame.pointer(_CURSOR)
        frame.store(at.at(8), 8 * _CURSOR)
        return at.pointer(0)

    is_type = x.load(PTR, TYPE)
    with f.when(which.eq(Guard.LEAF)):
        rest(2)
        f.ret(f.call(I1, "take", frame, node.word(1), x))
    with f.when(which.eq(Guard.IS)):
        rest(2)
        f.ret(x.eq(node.pointer(1)))
    with f.when(which.eq(Guard.EQUAL)):
        rest(2)
        want = node.pointer(1)
        with f.when(x.eq(want)):
            f.ret(1)
        with f.when(is_type.ne(want.load(PTR, TYPE))):
            f.ret(0)
        same = f.python("PyObject_RichCompareBool", x, want, f.constant(2, I32), result=I32)
        with f.when(same.lt(0)):
            _refuse(f)
        f.ret(same.ne(0))
    with f.when(which.eq(Guard.DICT)):
        n = node.word(1)
        rest(2)
        with f.when(is_type.ne(f.known("dict"))):
            f.ret(0)
        with f.when(f.python("PyDict_Size", x, result=I64).ne(n)):
            f.ret(0)
        with f.count(n):
            item = f.python("PyDict_GetItemWithError", x, skip_word())
            with f.when(item.is_null()):
                _refuse(f)
            check(item, True)
        f.ret(1)
    with f.when(which.eq(Guard.LIST)):
        n = node.word(1)
        rest(2)
        with f.when(is_type.ne(f.known("list"))):
            f.ret(0)
        with f.when(f.python("PyList_Size", x, result=I64).ne(n)):
            f.ret(0)
        with f.count(n) as k:
            item = f.python("PyList_GetItem", x, k)
            with f.when(item.is_null()):
                _refuse(f)
            check(item, True)
        f.ret(1)
    n = node.word(2)
    rest(3)
    with f.when(is_type.ne(node.pointer(1))):
        f.ret(0)
    with f.when(which.eq(Guard.TUPLE)):
        with f.when(x.load(I64, LENGTH).ne(n)):
            f.ret(0)
        with f.count(n) as k:
            check(x.at(ITEMS).pointer(k), False)
        f.ret(1)
    with f.count(n):
        item = f.python("PyObject_GetAttr", x, skip_word())
        with f.when(item.is_null()):
            _refuse(f)
        good = f.call(I1, "walk", frame, item)
        _decref(f, item)
        with f.when(~good):
            f.ret(0)
    f.ret(1)


def _disjoint(m: Module) -> None:
    """`disjoint(route, args)`: whether the leaves that must be alone in memory are. They are kept in the order of their
    addresses, which is mostly that of the call before."""
    f = m.function(I1, "disjoint", {"route": PTR, "args": PTR}, local=True)
    route, sole, n = f["route"], f["route"].pointer(Word.SOLE), f["route"].word(Word.SOLE_COUNT)

    def leaf(i: Value) -> Value:
        return route.pointer(Word.LEAVES).item(i, 8 * LEAF_WORDS)

    def start(i: Value) -> Value:
        return f["args"].word(leaf(i).word(Leaf.SLOT))

    with f.count(n, 1) as k:
        this = sole.word(k)
        at = start(this)
        j = f.variable(I64, k)
        with f.forever():
            with f.when(j.get().eq(0)):
                f.leave()
            before = sole.word(j.get() - 1)
            with f.when(start(before).le(at)):
                f.leave()
            sole.store(before, j.get() * 8)
            j.set(j.get() - 1)
        sole.store(this, j.get() * 8)
    with f.count(n, 1) as k:
        before = sole.word(k - 1)
        with f.when((start(before) + leaf(before).word(Leaf.BYTES)).gt(start(sole.word(k)))):
            f.ret(0)
    with f.count(route.word(Word.LEAF_COUNT)) as i:
        other = leaf(i).word(Leaf.KIND).eq(Code.ARRAY) & leaf(i).word(Leaf.SOLE).eq(0)
        with f.when(other & leaf(i).word(Leaf.BYTES).gt(0)):
            first, end = start(i), start(i) + leaf(i).word(Leaf.BYTES)
            low, high = f.variable(I64, 0), f.variable(I64, n)  # how many begin before the end of this one
            with f.forever():
                with f.when(low.get().ge(high.get())):
                    f.leave()
                middle = (low.get() + high.get()) >> 1
                begins = start(sole.word(middle)).lt(end)
                low.set(begins.choose(middle + 1, low.get()))
                high.set(begins.choose(high.get(), middle))
            with f.when(low.get().gt(0)):
                last = sole.word(low.get() - 1)
                with f.when((start(last) + leaf(last).word(Leaf.BYTES)).gt(first)):
                    f.ret(0)
    f.ret(1)


# ---- results --------------------------------------------------------------------------------------------------------


def _fresh(m: Module) -> None:
    """`fresh(result, objects)`: the array that a result goes to, a new reference; null with an error set without memory."""
    f = m.function(PTR, "fresh", {"result": PTR, "objects": PTR}, local=True)
    result = f["result"]
    how, descr, sizes = result.word(Result.MAKE), result.pointer(Result.DESCR), result.pointer(Result.SIZES)
    rank = result.word(Result.RANK).cast("trunc", I32)
    ndarray, null, zero = f.known("ndarray"), f.null(), f.constant(0, I32)
    writeable = f.constant(_PLAIN | _WRITEABLE, I32)
    with f.when(how.eq(Make.GIVEN)):
        leaf = f["objects"].pointer(result.word(Result.LEAF))
        _incref(f, leaf)
        f.ret(leaf)
    data, base = f.variable(PTR, 0), f.variable(PTR, 0)
    with f.when(how.eq(Make.LARGE)):
        count = f.room(8)
        count.store(result.word(Result.BYTES) + 64)
        u8 = f.known("u8")
        _incref(f, u8)
        raw = f.python("PyArray_NewFromDescr", ndarray, u8, f.constant(1, I32), count, null, null, zero, null)
        with f.when(raw.is_null()):
            f.ret(0)
        at = raw.load(PTR, DATA)
        data.set(at.at((f.constant(0, I64) - at.number()) & 63))
        base.set(raw)
    with f.when(how.eq(Make.DONATED)):
        leaf = f["objects"].pointer(result.word(Result.LEAF))
        _incref(f, leaf)
        data.set(leaf.load(PTR, DATA))
        base.set(leaf)
    _incref(f, descr)
    with f.when(base.get().is_null()):
        f.ret(f.python("PyArray_NewFromDescr", ndarray, descr, rank, sizes, null, null, zero, null))
    view = f.python("PyArray_NewFromDescr", ndarray, descr, rank, sizes, null, data.get(), writeable, null)
    with f.when(view.is_null()):
        _decref(f, base.get())
        f.ret(0)
    with f.when(f.python("PyArray_SetBaseObject", view, base.get(), result=I32).lt(0)):
        _decref(f, view)
        f.ret(0)
    f.ret(view)


def _build(m: Module) -> None:
    """`build(cursor, results)`: the tree of results that the nodes at `*cursor` describe; null with an error set."""
    f = m.function(PTR, "build", {"cursor": PTR, "results": PTR}, local=True)
    cursor, results = f["cursor"], f["results"]
    node = cursor.pointer(0)
    which = node.word(0)

    def rest(words: int) -> None:
        cursor.store(node.at(8 * words))

    def child(undo: Value) -> Value:
        item = f.call(PTR, "build", cursor, results)
        with f.when(item.is_null()):
            _decref(f, undo)
            f.ret(0)
        return item

    def made(name: str, *args: Value) -> Value:
        x = f.python(name, *args)
        with f.when(x.is_null()):
            f.ret(0)
        return x

    with f.when(which.le(Guard.IS)):
        rest(2)
        given = f.variable(PTR, node.pointer(1))
        with f.when(which.eq(Guard.LEAF)):
            given.set(results.pointer(node.word(1)))
        _incref(f, given.get())
        f.ret(given.get())
    with f.when(which.eq(Guard.DICT)):
        rest(2)
        x = made("PyDict_New")
        with f.count(node.word(1)):
            key = cursor.pointer(0).pointer(0)
            cursor.store(cursor.pointer(0).at(8))
            item = child(x)
            failed = f.python("PyDict_SetItem", x, key, item, result=I32).ne(0)
            _decref(f, item)
            with f.when(failed):
                _decref(f, x)
                f.ret(0)
        f.ret(x)
    with f.when(which.eq(Guard.LIST)):
        rest(2)
        x = made("PyList_New", node.word(1))
        with f.count(node.word(1)) as k:
            f.python("PyList_SetItem", x, k, child(x), result=I32)
        f.ret(x)
    rest(3)
    x = made("PyTuple_New", node.word(2))
    with f.count(node.word(2)) as k:
        f.python("PyTuple_SetItem", x, k, child(x), result=I32)
    with f.when(which.eq(Guard.TUPLE)):
        f.ret(x)
    whole = f.python("PyObject_CallOneArg", node.pointer(1), x)
    _decref(f, x)
    f.ret(whole)


def _release(m: Module) -> None:
    """`release(objects, n)`: give up the objects that are there."""
    f = m.function("void", "release", {"objects": PTR, "n": I64}, local=True)
    with f.count(f["n"]) as k:
        x = f["objects"].pointer(k)
        with f.when(~x.is_null()):
            _decref(f, x)
    f.ret()


# ---- a call ---------------------------------------------------------------------------------------------------------


def _ticks(f: Function) -> Value:
    name = "llvm.readcyclecounter" if f.module.machine == "x86_64" else "llvm.readsteadycounter"
    return f.outside(I64, name)


def _run(m: Module) -> None:
    """`run(route, args)`: the program's number, 0 where all is well."""
    f = m.function(I32, "run", {"route": PTR, "args": PTR, "arena": PTR}, local=True)
    route, arena = f["route"], f["arena"]
    thread = f.variable(PTR, 0)
    with f.when(route.word(Word.TICKS).ge(_SHORT[m.machine])):
        thread.set(f.python("PyEval_SaveThread"))
    before = _ticks(f)
    number = f.call(
        I32, route.pointer(Word.ENTRY), f["args"], route.pointer(Word.DIMS), arena, route.pointer(Word.CONTEXT)
    )
    route.store(_ticks(f) - before, 8 * Word.TICKS)
    with f.when(~thread.get().is_null()):
        f.python("PyEval_RestoreThread", thread.get(), result="void")
    f.ret(number)


def _attempt(m: Module) -> None:
    """`attempt(route, items, names)`: the result of a call along a route, null with an error set, `@api` if it does not fit."""
    f = m.function(PTR, "attempt", {"route": PTR, "items": PTR, "names": PTR}, local=True)
    route, items, unfit = f["route"], f["items"], f.symbol("api")
    named, expected = route.word(Word.NAMED), route.pointer(Word.NAMES)
    with f.count(named) as k:
        with f.when(f["names"].at(ITEMS).pointer(k).ne(expected.pointer(k))):
            f.ret(unfit)
    leaves, results = route.word(Word.LEAF_COUNT), route.word(Word.RESULT_COUNT)
    args, objects, made = f.room(route.word(Word.SLOTS) * 8), f.room(leaves * 8), f.room(results * 8)
    frame = f.room(8 * 5)
    for i, x in enumerate((route.pointer(Word.GUARDS), route, args, objects, f.room(leaves * 16))):
        frame.store(x, 8 * i)
    for memory, n in (objects, leaves), (made, results):
        with f.count(n) as k:
            memory.store(0, k * 8)
    owner = route.pointer(Word.OWNER)
    _incref(f, owner)

    def end(value: Value, *undo: Callable[[], None]) -> None:
        for u in undo:
            u()
        f.call("void", "release", made, results)
        f.call("void", "release", objects, leaves)
        _decref(f, owner)
        f.ret(value)

    with f.count(route.word(Word.ARGS) + named) as k:
        with f.when(~f.call(I1, "walk", frame, items.pointer(k))):
            end(unfit)
    with f.when(route.word(Word.SOLE_COUNT).gt(0)):
        with f.when(~f.call(I1, "disjoint", route, args)):
            end(unfit)

    need = route.word(Word.ARENA_BYTES)
    mine = f.variable(PTR, 0)
    with f.when(need.gt(0)):
        with f.count(ARENAS) as k:
            arena = route.pointer(Word.ARENAS).item(k, 8 * ARENA_WORDS)
            with f.when(arena.word(_BYTES).ge(need)):
                with f.when(arena.swap_if(0, 1, 8 * _BUSY)):
                    mine.set(arena)
                    f.leave()
        with f.when(mine.get().is_null()):
            end(unfit)

    def leave_arena() -> None:
        with f.when(~mine.get().is_null()):
            mine.get().share(0, 8 * _BUSY)

    # Results, then what a program always gets.
    given = f.variable(I64, 0)
    ids = f.room(results * 8)
    with f.count(results) as k:
        result = route.pointer(Word.RESULTS).item(k, 8 * RESULT_WORDS)
        x = f.call(PTR, "fresh", result, objects)
        made.store(x, k * 8)
        with f.when(x.is_null()):
            end(f.null(), leave_arena)
        args.store(x.load(PTR, DATA), (route.word(Word.RESULTS_AT) + k) * 8)
        with f.when(result.word(Result.MAKE).eq(Make.DONATED)):
            ids.store(objects.pointer(result.word(Result.LEAF)), given.get() * 8)
            given.set(given.get() + 1)
    with f.count(route.word(Word.CONST_COUNT)) as k:
        args.store(route.pointer(Word.CONSTS).pointer(k), (route.word(Word.RESULTS_AT) + results + k) * 8)
    with f.count(route.word(Word.FIXED_COUNT)) as k:
        args.store(route.pointer(Word.FIXED).pointer(k), (route.word(Word.FIXED_AT) + k) * 8)
    with f.when(given.get().gt(0)):
        with f.count(given.get()) as k:
            x = ids.pointer(k)
            x.store(x.load(I32, FLAGS) | DONATED, FLAGS)
        text = f.python("PyBytes_FromStringAndSize", ids, given.get() * 8)
        with f.when(text.is_null()):
            end(f.null(), leave_arena)
        noted = f.python("PyObject_CallOneArg", route.pointer(Word.NOTE), text)
        _decref(f, text)
        with f.when(noted.is_null()):
            end(f.null(), leave_arena)
        _decref(f, noted)

    space = f.variable(PTR, 0)
    with f.when(~mine.get().is_null()):
        space.set(mine.get().pointer(_ADDRESS))
    number = f.call(I32, "run", route, args, space.get())
    leave_arena()
    with f.when(number.ne(0)):
        code = f.python("PyLong_FromLong", number.cast("sext", I64))
        with f.when(code.is_null()):
            end(f.null())
        answer = f.python("PyObject_CallOneArg", route.pointer(Word.FAIL), code)
        _decref(f, code)
        end(answer)
    cursor = f.room(8)
    cursor.store(route.pointer(Word.TREE))
    end(f.call(PTR, "build", cursor, made))


def _settings(f: Function) -> Value:
    """The settings in force, as `config.get` finds them; not held."""
    found = f.room(8)
    found.store(0)
    f.python("PyContextVar_Get", f.known("override"), f.null(), found, result=I32)
    x = f.variable(PTR, found.pointer(0))
    with f.when(~x.get().is_null()):
        _decref(f, x.get())
    with f.when(x.get().eq(f.known("None"))):
        x.set(f.python("PyDict_GetItem", f.known("config"), f.known("_process")))
    return x.get()


def _call(m: Module) -> None:
    """A method of Python (METH_FASTCALL | METH_KEYWORDS). The table of `self`: how many routes, what else to call, the routes."""
    f = m.function(PTR, "call", {"self": PTR, "items": PTR, "nargs": I64, "names": PTR})
    table = f["self"].load(PTR, CALLS).load(PTR, DATA)
    nargs, names, items = f["nargs"], f["names"], f["items"]
    named = f.variable(I64, 0)
    with f.when(~names.is_null()):
        named.set(names.load(I64, LENGTH))
    settings = _settings(f)
    with f.count(MOST_ROUTES) as k:
        # Looked at anew each time: a guard may have run other code, which changes the table.
        with f.when(k.ge(table.word(0))):
            f.leave()
        route = table.pointer(k + 2)
        alike = route.pointer(Word.SETTINGS).eq(settings) & route.word(Word.ARGS).eq(nargs)
        with f.when(alike & route.word(Word.NAMED).eq(named.get())):
            answer = f.call(PTR, "attempt", route, items, names)
            with f.when(answer.ne(f.symbol("api"))):
                # The route that was taken last comes first, unless somebody else has changed the table.
                with f.when(k.gt(0) & k.lt(table.word(0))):
                    with f.when(table.pointer(k + 2).eq(route)):
                        table.store(table.pointer(k + 1), (k + 2) * 8)
                        table.store(route, (k + 1) * 8)
                f.ret(answer)
    count = nargs + named.get()
    again = f.room((count + 1) * 8)
    again.store(f["self"])
    with f.count(count) as k:
        again.store(items.pointer(k), (k + 1) * 8)
    f.ret(f.python("PyObject_Vectorcall", table.pointer(1), again, nargs + 1, names))


def _claim(m: Module) -> None:
    """`claim(word)`: set a word from 0 to 1 in one step; whether that was done."""
    f = m.function(I32, "claim", {"word": PTR})
    f.ret(f["word"].swap_if(0, 1).cast("zext", I32))
