"""Functions, classes and constants that a run has replaced in imported modules: they can be seen, and not undone."""

import sys
from operator import is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

OWN = "anchorlens"
_DECIDING = (
    "builtins IPython einops jaxtyping json math numpy os pandas pathlib plotly pyarrow random scipy sklearn time "
    "tokenizers torch tqdm transformer_lens transformers"
)
WATCHED = frozenset([OWN, *_DECIDING.split()])  # top packages whose functions decide results
_CODE = (FunctionType, BuiltinFunctionType, type, property, classmethod, staticmethod)


class Picture:
    """How the watched modules and the classes they define stand: what each of their names is bound to."""

    def __init__(self) -> None:
        self._seen: dict[int, _Holder] = {}  # by id; each is kept, so that ids stay apart
        self._fresh = True
        self.extend()

    def extend(self) -> None:
        """Take in modules that were imported since."""
        if self._fresh:
            self._seen |= self._new()
        self._fresh = False

    def _new(self) -> dict[int, "_Holder"]:
        return {id(held): _Holder(held, own) for held, own in self._holders() if id(held) not in self._seen}

    def _holders(self) -> list[tuple[Any, bool]]:
        """The watched modules and the classes they define, each with whether it is the package's own.

        A module that has as many names as before is passed over: it has no new class, unless in place of something,
        and that is seen.
        """
        found: list[tuple[Any, bool]] = []
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top in WATCHED and type(module) is ModuleType:
                seen = self._seen.get(id(module))
                if seen is not None and len(seen.names) == seen.size:
                    continue
                own = top == OWN and not name.startswith(f"{OWN}.warm")
                found.append((module, own))
                classes = [each for each in list(vars(module).values()) if issubclass(type(each), type)]
                found += [(each, own) for each in classes if each.__module__ == name]
        return found

    def replaced(self, namespace: dict[str, Any]) -> list[str]:
        """What is bound otherwise than it was, or is new and comes from the notebook's ``namespace``."""
        new = self._new().values()
        self._fresh = bool(new)
        seen = list(self._seen.values())
        other = [each for each in seen if each.inner or not all(map(is_, map(each.names.get, each.code), each.was))]
        known = [f"{each.name}.{name} was replaced" for each in other for name in each.replaced()]
        grown = [each for each in seen if each.own or len(each.names) != each.size]  # there are 100,000 names
        fresh = [(each, name) for each in (*new, *grown) for name in each.added(namespace)]
        return known + [f"{each.name}.{name} is the notebook's" for each, name in fresh]


class _Holder:
    """A module or a class, and what its names were bound to."""

    def __init__(self, held: Any, own: bool) -> None:
        self.names, self.own, self._held = vars(held), own, held
        self.name = f"{held.__module__}.{held.__qualname__}" if isinstance(held, type) else held.__name__
        self.size = len(self.names)
        bound = {name: value for name, value in list(self.names.items()) if issubclass(type(value), _CODE)}
        self.code, self.was = tuple(bound), tuple(bound.values())
        self.inner = {name: _inner(value) for name, value in list(self.names.items()) if self._watched(name, value)}

    def _watched(self, name: str, value: Any) -> bool:
        return self.own and not name.startswith("__") and not isinstance(value, ModuleType)

    def replaced(self) -> list[str]:
        names = self.names
        code = [name for name, value in zip(self.code, self.was, strict=True) if names.get(name) is not value]
        return code + [
            name for name, was in self.inner.items() if name not in code and not _same(was, _inner(names.get(name)))
        ]

    def added(self, namespace: dict[str, Any]) -> list[str]:
        return [
            name
            for name, value in list(self.names.items())
            if (type(value) is FunctionType and value.__globals__ is namespace)
            or (
                issubclass(type(value), type)
                and value.__module__ == namespace.get("__name__")
                and name not in self.code
            )
        ]


def _inner(value: Any) -> list[Any]:
    """The object itself, and what a function runs or a container holds."""
    if isinstance(value, FunctionType):
        return [value, value.__code__, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, dict):
        return [value, *value.keys(), *value.values()]
    return [value, *value] if isinstance(value, list | set) else [value]


def _same(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(one is other for one, other in zip(these, those, strict=True))
