"""YAML text and `key=value` overrides → a Recipe, or one line that says what is wrong.

PyYAML's C safe loader without aliases (201 bytes of nested ones hold a careless reader for minutes), with duplicate
keys refused, at most 1 MiB. No includes, no interpolation: a recipe is read from one file, top to bottom.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from conf import Recipe, Source
from conf.errors import InputError, show

MAX_BYTES, MAX_DEPTH = 1 << 20, 50


class _Loader(yaml.CSafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(
                    f"the key '{show(key)}' stands twice in one mapping, line {node.start_mark.line + 1}"
                )
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads `on` as true and 1e-3 as text; here only true and false are booleans, and 1e-3 is a number.
_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, name: str) -> Any:
    _refuse_long(len(text.encode()), name)
    try:
        _refuse_traps(text)
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader's subclass
    except yaml.YAMLError as error:
        raise InputError(f"{show(name)}: not readable as YAML: {_reason(error)}") from None


def _refuse_long(num_bytes: int, name: object) -> None:
    if num_bytes > MAX_BYTES:
        raise InputError(f"{show(name)}: longer than {MAX_BYTES} bytes, which no recipe is")


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return show(" ".join(str(error).split()), 300)
    mark = error.problem_mark
    said = ", ".join(filter(None, (error.context, error.problem)))
    return f"{show(said, 300)}, line {mark.line + 1}, column {mark.column + 1}"


def _refuse_traps(text: str) -> None:
    """Aliases and bottomless nesting, found in the stream of events, before the C loader builds anything of it."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a recipe")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def override(tree: Any, assignment: str) -> None:
    """Sets `stages.layer1.train.epochs=1` in the mapping `tree`."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise InputError(f"override '{show(assignment)}': expected key=value, for example train.batch_size=50")
    try:
        assignment.encode()
    except UnicodeEncodeError:
        raise InputError(f"override '{show(assignment)}': not UTF-8 text") from None
    *parents, last = path.split(".")
    for key in parents:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise InputError(f"override {show(path)}: '{show(key)}' is no mapping, so nothing can be set inside it")
    tree[last] = parse(text, f"override {path}")


def read(path: Path, overrides: list[str]) -> Recipe:
    """Reads and checks a recipe file; errors are InputError, one line each."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a device or a pipe may be endless
        _refuse_long(len(content), path)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"recipe {show(path)}: {reason}; expected a YAML file such as conf/digits.yaml") from None
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(
            f"recipe {show(path)}: expected a mapping of name, data, stages …; found {type(tree).__name__}"
        )
    for assignment in overrides:
        override(tree, assignment)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"recipe {show(path)}: {explain(error, tree)}") from None


def explain(error: ValidationError, tree: Any, expected: Any = Recipe) -> str:
    """The first complaint of a validation of `tree` as one line: where, what was expected, what was found."""
    first, *others = error.errors()
    said = {(first["loc"][-1:], first["msg"]), *((other["loc"][-1:], other["msg"]) for other in others)}
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""  # a default that stages inherit is one mistake
    where = ".".join(_place(first["loc"], first["type"], tree))
    if first["type"] == "extra_forbidden":
        key, known = str(first["loc"][-1]), _fields(expected, [str(part) for part in first["loc"][:-1]])
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}"
        return f"unknown key '{show(where)}'; {hint}{more}"
    if first["type"] == "missing":
        return f"{show(where)} is missing{more}"
    if first["type"].startswith("union_tag"):
        return f"{show(where)}{_no_kind(first)}{more}".removeprefix(": ")
    message = _PLAINER.get(first["type"], first["msg"].removeprefix("Value error, "))
    found = "" if first["type"] == "value_error" else f", found {show(repr(first['input']), 60)}"
    return f"{show(where)}: {show(message, 300)}{found}{more}".removeprefix(": ")


_PLAINER = {  # what pydantic says for programmers
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "string_unicode": "expected UTF-8 text",
    "string_pattern_mismatch": "expected a letter and then letters, digits, _ or -, at most 64 in all",
}


def _no_kind(complaint: Any) -> str:
    """What follows the place of a mapping whose `kind` is missing or unknown."""
    known = [kind for model in _models_in(Source) if (kind := _kind(model))]  # only sources are told apart by kind
    if complaint["type"] == "union_tag_not_found":
        return f": kind is missing; expected one of {', '.join(known)}"
    kind = str(complaint["ctx"]["tag"])
    close = difflib.get_close_matches(kind, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f": unknown kind '{show(kind, 60)}'{hint}; expected one of {', '.join(known)}"


def _place(location: Sequence[int | str], kind: str, tree: Any) -> list[str]:
    """The keys of `tree` that lead to a complaint, without what pydantic adds: which member of a union it tried."""
    place = []
    for number, part in enumerate(location):
        here = isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int)
        if here:
            tree = tree[part]
        if here or (kind == "missing" and number == len(location) - 1):
            place.append(str(part))
    return place


def _fields(expected: Any, place: list[str]) -> list[str]:
    """The keys allowed at a place of what is expected, found by walking the model's own fields."""
    models = _models_in(expected)
    for part in place:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        inner = [found for field in fields for found in _models_in(field.annotation)]
        models = inner or [model for model in models if part == _kind(model)] or models
    return sorted({name for model in models for name in model.model_fields})


def _kind(model: Any) -> str | None:
    """The one `kind` a source says it is."""
    field = model.model_fields.get("kind")
    return next(iter(get_args(field.annotation)), None) if field else None


def _models_in(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
