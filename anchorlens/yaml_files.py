"""YAML read strictly: no key twice, UTF-8, and errors that name file and line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


class YamlError(ValueError):
    """A file that cannot be read as YAML."""


def read(path: Path) -> Any:
    """What a file says; only plain values are made of it, and no number that is not written in full.

    Raises:
        FileNotFoundError: if there is none.
        YamlError: for a file that cannot be read; names it, the line and the remedy.
    """
    return placed(path)[0]


def placed(path: Path) -> tuple[Any, Callable[..., int]]:
    """As ``read``; and a function from keys of mappings and places in lists to the line that they lead to."""
    import yaml

    class Strict(yaml.SafeLoader):
        """The safe loader, which by itself takes the last of two equal keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return super().construct_mapping(node, deep)

        def number(self, node: Any) -> int | float:
            """A number as it is written, where YAML 1.1 would take 042 for 34, and 12:30 for 750."""
            base = 60 if ":" in node.value else 8 if re.fullmatch(r"[-+]?0[0-7_]+", node.value) else 0
            of = super().construct_yaml_float if node.tag.endswith(":float") else super().construct_yaml_int
            if base:
                plain = f"{int(node.value.replace('_', ''))} or " if base == 8 and node.value.strip("+-0_") else ""
                problem = f"{node.value} is {of(node)} in YAML, in base {base}; write {plain}{of(node)}, or quote it"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
            return of(node)

    for kind in ("int", "float"):
        Strict.add_constructor(f"tag:yaml.org,2002:{kind}", Strict.number)
    try:
        loader = Strict(path.read_bytes().decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            said = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise YamlError(f"{path}: {error}.") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise YamlError(f"{path}{at}: not readable as YAML ({said}); quote texts that hold : or #.") from error

    def line(*keys: Any) -> int:
        value: Any = node
        key: Any = node
        for each in keys:  # as far as they lead
            if isinstance(value, yaml.MappingNode):
                pair = next((pair for pair in value.value if pair[0].value == each), None)
            else:
                there = isinstance(value, yaml.SequenceNode) and isinstance(each, int) and each < len(value.value)
                pair = (value.value[each],) * 2 if there else None
            if pair is None:
                break
            key, value = pair
        return key.start_mark.line + 1 if key is not None else 1

    return said, line
