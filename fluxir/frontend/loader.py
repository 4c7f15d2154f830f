"""Model files: `@fx.model` marks entry points with typed signatures; `load_model` finds them in a `.py`, `.fx` or `.onnx`
file.

Invariants: a `.py` file is run only because the user named it; `.fx` and `.onnx` files are data and run nothing. An
entry point is traced from its annotations alone, without example inputs. Weights are the model file's own business: it
reads them with `fx.load_safetensors` and closes over them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import types as python_types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxir.errors import FluxError, Location, error
from fluxir.frontend import tree
from fluxir.frontend.staging import staged
from fluxir.frontend.trace import Traced, as_facts, function_location, function_name, raised_by_user, trace
from fluxir.ir.core import Module
from fluxir.ir.dims import symbols_of
from fluxir.ir.dtypes import DType
from fluxir.ir.specialise import check_symbols, specialise, specialise_facts, specialise_type
from fluxir.ir.types import TensorType


class Model:
    """An entry point: a function with a type for every parameter. Calling it calls the function.

    `signature` maps parameter names to trees of tensor types, `facts` is what is known of the sizes.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, facts: Any = None) -> None:
        self.fn, self.name, self.facts = fn, name or function_name(fn), as_facts(facts)
        self.__doc__, self.__wrapped__ = fn.__doc__, fn
        self.__name__ = self.name
        self._annotations: dict[str, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<fx.model {self.name}>"

    @property
    def location(self) -> Location | None:
        """Where the function is defined."""
        return function_location(self.fn)

    def _annotated(self) -> dict[str, Any]:
        if self._annotations is None:
            fn = inspect.unwrap(self.fn)
            if not inspect.isfunction(fn) and not inspect.ismethod(fn):
                fn = type(fn).__call__
            try:
                self._annotations = inspect.get_annotations(fn, eval_str=True)
            except FluxError:
                raise
            except Exception as e:
                raise error(
                    "FX0323", f"an annotation of {self.name!r} cannot be evaluated: {e}", loc=self.location
                ) from None
        return self._annotations

    @property
    def signature(self) -> dict[str, Any]:
        """A tree of tensor types for every parameter; FX0309 for one without annotation, FX0323 for one of another kind."""
        known = self._annotated()
        out, missing = {}, []
        for p in inspect.signature(self.fn).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise error(
                    "FX0309",
                    f"the entry point {self.name!r} takes *{p.name}",
                    help="name every parameter",
                    loc=self.location,
                )
            if p.name in known:
                out[p.name] = annotation_types(known[p.name], p.name, self.location)
            elif p.default is p.empty:
                missing.append(p.name)
        if missing:
            raise error("FX0309", f"the entry point {self.name!r} has no type for {', '.join(missing)}",
                        help=f'annotate it, for example {missing[0]}: fx.f32["B", 64]', loc=self.location)  # fmt: skip
        return out

    @property
    def result(self) -> Any:
        """The tree of tensor types the annotation promises for the result; None without annotation."""
        note = self._annotated().get("return")
        return None if note is None else annotation_types(note, "the result", self.location)

    def _traced(self, args: list[Any], kwargs: dict[str, Any]) -> Traced:
        """The trace; an exception that the user's own code raises becomes FX0317 at its line."""
        try:
            return trace(staged(self.fn), args, kwargs, name=self.name, facts=self.facts)
        except FluxError:
            raise
        except Exception as e:
            at = raised_by_user(e)
            if at is None:
                raise  # a defect of ours
            what = f"{self.name!r} raised {type(e).__name__} while it was traced: {e}"
            raise error("FX0317", what, loc=at, help="traced tensors have a type and shape, but no values yet") from e

    def trace(self, sizes: Mapping[str, int] = {}) -> Traced:
        """The program of this entry point, for the given `sizes` of its symbols where there are any.

        FX0323 where the result is not what the annotation says, FX0604 for a size that is not there or breaks a fact.
        """
        s = self.signature
        if sizes:  # before tracing, so that the model may branch on them
            check_symbols({n for t in tree.leaves(s) for d in t.shape for n in symbols_of(d)}, sizes, self.name)
            specialise_facts(self.facts, sizes)
            s = _specialised(s, sizes)
        parameters = inspect.signature(self.fn).parameters
        args = [s[n] for n, p in parameters.items() if n in s and p.kind != p.KEYWORD_ONLY]
        kwargs = {n: s[n] for n, p in parameters.items() if n in s and p.kind == p.KEYWORD_ONLY}
        t = self._traced(args, kwargs)
        if sizes:  # facts that the model has stated while it was traced
            t = dataclasses.replace(
                t, module=dataclasses.replace(t.module, facts=specialise_facts(t.module.facts, sizes))
            )
        promised = _specialised(self.result, sizes)
        if promised is not None:
            from fluxir.ir.dims import assuming, prove_equal

            leaves, structure = tree.flatten(promised)
            tree.check_same(
                structure, t.out_tree, "the annotated result", "what the function returns", "FX0323", self.location
            )
            with assuming(t.module.facts):
                for path, want, v in zip(structure.paths(), leaves, t.entry.outs, strict=True):
                    same = len(want.shape) == len(v.shape) and all(map(prove_equal, want.shape, v.shape))
                    if want.dtype != v.dtype or not same:
                        raise error(
                            "FX0323",
                            f"{tree.path_text(path, 'the result')} of {self.name!r} is {v.type}, the annotation says {want}",
                            loc=self.location,
                        )
        return t


def model(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, facts: Any = None) -> Any:
    """Mark an entry point: `@fx.model` or `@fx.model(facts="B >= 1, T % 8 == 0")`.

    Every parameter says its type, `x: fx.f32["B", 784]`, or a tree of types (dict, list, tuple, dataclass).
    """
    if fn is None:
        return lambda f: Model(f, name, facts)
    return Model(fn, name, facts)


def _specialised(types: Any, sizes: Mapping[str, int]) -> Any:
    """A tree of tensor types with the sizes given."""
    if not sizes or types is None:
        return types
    leaves, structure = tree.flatten(types)
    return structure.unflatten([specialise_type(t, sizes) for t in leaves])


def annotation_types(note: Any, name: str, loc: Location | None = None) -> Any:
    """The tree of tensor types that an annotation means; FX0323 if it means none."""
    if isinstance(note, TensorType):
        return note
    if isinstance(note, DType):
        return TensorType(note)
    if note is None or note is type(None):
        return None
    if isinstance(note, dict):
        return {k: annotation_types(v, f"{name}.{k}", loc) for k, v in note.items()}
    if isinstance(note, list):
        return [annotation_types(v, f"{name}.{i}", loc) for i, v in enumerate(note)]
    if tree.is_namedtuple(note):
        return type(note)(
            *[annotation_types(v, f"{name}.{k}", loc) for k, v in zip(type(note)._fields, note, strict=True)]
        )
    if isinstance(note, tuple):
        return tuple(annotation_types(v, f"{name}.{i}", loc) for i, v in enumerate(note))
    if isinstance(note, python_types.GenericAlias) and note.__origin__ is tuple:
        return tuple(annotation_types(v, f"{name}.{i}", loc) for i, v in enumerate(note.__args__))
    if isinstance(note, type) and (dataclasses.is_dataclass(note) or hasattr(note, "_fields")):
        fields = inspect.get_annotations(note, eval_str=True)
        values = {k: annotation_types(v, f"{name}.{k}", loc) for k, v in fields.items()}
        return note(**values)
    shown = note.__name__ if isinstance(note, type) else repr(note)
    raise error(
        "FX0323",
        f"the annotation of {name} is {shown}, not a tensor type",
        help='write for example fx.f32["B", 64]',
        loc=loc,
    )


# ---- files ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry point of a model file. `trace()` gives its program."""

    name: str
    make: Callable[[Mapping[str, int]], Traced]

    def trace(self, sizes: Mapping[str, int] = {}) -> Traced:
        """The program, and the structures of its arguments and result; with `sizes` fixed where some are given."""
        return self.make(sizes)


@dataclass(frozen=True)
class ModelFile:
    """The entry points of a file, by name, in the order of the file."""

    path: Path
    entries: dict[str, Entry]

    def entry(self, name: str | None = None) -> Entry:
        """The entry point of this name; without a name the only one, or the one called main. FX0613 otherwise."""
        if name is None:
            if len(self.entries) == 1:
                return next(iter(self.entries.values()))
            name = "main"
        if name not in self.entries:
            raise error(
                "FX0613",
                f"{self.path} has no entry point {name!r}"
                if name != "main"
                else f"{self.path} has several entry points",
                help=f"choose one of: {', '.join(self.entries)}",
            )
        return self.entries[name]


def load_model(path: str | Path, *, trust: bool = False) -> ModelFile:
    """The entry points of a model file: a `.py`, which is run, or a `.fx` or `.onnx`, which is only read.

    A `.fx` may come from anybody as long as it holds tensor functions: they cannot say which memory they touch. Lowered
    functions (dumps of later stages) can, and are refused without `trust` (FX0813). Raises FX0803 for a file that cannot be
    read, FX0808 for another suffix, FX0317 for a `.py` that fails, FX0316 for a file without entry points.
    """
    p = Path(path)
    if p.suffix == ".py":
        entries = _run_python(p)
    elif p.suffix == ".fx":
        from fluxir.ir.parser import read_module

        module = read_module(p)
        if not trust:
            require_tensor_level(module, str(p))
        entries = module_entries(module)
    elif p.suffix == ".onnx":
        entries = {"main": Entry("main", lambda sizes: _trace_onnx(p, sizes))}
    else:
        raise error(
            "FX0808", f"{p} is not a model file", help="a model is a .py with @fx.model, a .fx with IR text or an .onnx"
        )
    if not entries:
        raise error(
            "FX0316",
            f"{p} has no entry point",
            help="mark a function with @fx.model" if p.suffix == ".py" else "it holds no tensor function",
        )
    return ModelFile(p, entries)


def _trace_onnx(path: Path, sizes: Mapping[str, int]) -> Traced:
    """The program of an ONNX file, with arguments and results named as there."""
    from fluxir.frontend import onnx

    model = onnx.load(path, dims=sizes)
    t = trace(model, list(model.inputs.values()), name=onnx.entry_name(path))
    return dataclasses.replace(t, module=onnx.renamed(t.module, list(model.inputs), model.outputs))


def require_tensor_level(m: Module, path: str) -> None:
    """FX0813 where a module holds functions that state their own loads and stores."""
    lowered = [f for f in m.funcs.values() if f.level != "tensor"]
    if lowered:
        raise error(
            "FX0813",
            f"{path} holds the {lowered[0].level} function @{lowered[0].name}, which says itself which memory it touches",
            help="only if you trust where it comes from: --trust, or load_model(path, trust=True)",
        )


def _run_python(path: Path) -> dict[str, Entry]:
    try:
        source = path.read_bytes()
    except OSError as e:
        raise error("FX0803", f"cannot read {path}: {e.strerror}") from None
    file = str(path.resolve())
    name = f"fluxir_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and annotations look the module up
    sys.path.insert(0, folder)
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102  (the user named this file to be run)
    except FluxError as e:
        _place(e, file)
        _restore(name, before)
        raise
    except SyntaxError as e:
        _restore(name, before)
        loc = Location(str(e.filename or file), e.lineno or 1, e.offset or 0)
        raise error("FX0317", f"{path} is not valid Python: {e.msg}", loc=loc) from e
    except Exception as e:
        _restore(name, before)
        failure = error("FX0317", f"{path} raised {type(e).__name__}: {e}", help=f"run `python {path}` to debug it")
        failure.__traceback__ = e.__traceback__
        _place(failure, file)
        raise failure from e
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    found = [v for v in vars(module).values() if isinstance(v, Model) and v.fn.__module__ == name]
    return {m.name: Entry(m.name, m.trace) for m in dict.fromkeys(found)}


def _restore(name: str, before: Any) -> None:
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


def _place(e: FluxError, file: str) -> None:
    """The last line of the user's file on the way to the error."""
    if e.loc is not None:
        return
    tb = e.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == file:
            e.loc = Location(file, tb.tb_lineno)
        tb = tb.tb_next


def module_entries(m: Module) -> dict[str, Entry]:
    """The entry points of a module: its tensor functions that no other function calls, or, of a lowered module (a dump
    to go on from), its host functions."""
    called = {
        op.attrs["callee"]
        for f in m.funcs.values()
        for op in f.walk()
        if op.attrs.get("callee") and op.attrs["callee"] != f.name
    }
    level = "host" if m.entry.level == "host" else "tensor"
    names = [n for n, f in m.funcs.items() if f.level == level and n not in called]

    def make(name: str) -> Callable[[Mapping[str, int]], Traced]:
        def build(sizes: Mapping[str, int]) -> Traced:
            funcs = {name: m.funcs[name], **{n: f for n, f in m.funcs.items() if n != name and n not in names}}
            f = m.funcs[name]
            module = m if next(iter(m.funcs)) == name and len(names) == 1 else Module(name, funcs, m.facts, m.attrs)
            memories = len(f.args) - ("arena" in f.attrs)
            inputs = f.attrs["inputs"] if level == "host" else len(f.args)
            arguments = tuple(tree.LEAF for _ in range(inputs))
            in_tree = tree.TreeDef(
                "tuple", (0, 1), (tree.TreeDef("tuple", tuple(range(inputs)), arguments), tree.TreeDef("dict"))
            )
            results = tuple(tree.LEAF for _ in (range(memories - inputs) if level == "host" else f.outs))
            out_tree = tree.LEAF if len(results) == 1 else tree.TreeDef("tuple", tuple(range(len(results))), results)
            return Traced(specialise(module, sizes), in_tree, out_tree)

        return build

    return {n: Entry(n, make(n)) for n in names}


__all__ = [
    "Entry", "Model", "ModelFile", "load_model", "model", "module_entries",
]  # fmt: skip
