# SPDX-License-Identifier: Apache-2.0
"""YAML files of sections into strict dataclasses, with errors that name the dotted place.

YAML reads `no` as false, `010` as 8 and `2024-01-01` as a date. `Section` and `Items` keep the word as written beside
YAML's value, and `convert` chooses between them by the field's type.
"""

import re
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

from vanilla_transformer.console.shipped_configs import missing_config

# A token of the Hub (a shorter word is a name), or credentials in an address: https://user:password@host.
SECRET = re.compile(r"(hf|api_org)_[A-Za-z0-9]{30,}|://[^/?#\s]*@")
WORD_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp", "null")}


class Section(dict[str, Any]):
    """A mapping of a YAML file; `words` has the text of each value that YAML does not read as text."""

    def __init__(self, values: Any = (), words: dict[str, str] | None = None):
        super().__init__(values)
        self.words = dict(words or {})

    def set(self, key: str, value: Any, word: str | None) -> None:
        self[key] = value
        self.words.pop(key, None)
        if word is not None:
            self.words[key] = word


class Items(list[Any]):
    """A list of a YAML file; `words` has the text, by its index, of each item that YAML does not read as text."""

    def __init__(self, values: Iterable[Any] = (), words: dict[int, str] | None = None):
        super().__init__(values)
        self.words = dict(words or {})


READ_AS = {Section: dict, Items: list}  # in messages


class _Loader(yaml.SafeLoader):
    """Makes Sections and Items; refuses duplicate keys, where PyYAML would take the last."""

    def construct_section(self, node: yaml.MappingNode):
        section = Section()
        yield section  # an alias inside may point to it
        keys = set()
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.add(key)
        self.flatten_mapping(node)  # merges `<<`, whose keys come first and may be given again
        for key_node, value_node in node.value:
            section.set(self._key(key_node), self.construct_object(value_node, deep=True), word_of(value_node))

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", node.start_mark)
        return node.value  # a word, even if YAML reads it as another type

    def construct_items(self, node: yaml.SequenceNode):
        items = Items()
        yield items
        items.extend(self.construct_object(item, deep=True) for item in node.value)
        items.words = {i: word for i, item in enumerate(node.value) if (word := word_of(item)) is not None}


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_section)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_items)
yaml.SafeDumper.add_representer(Section, yaml.SafeDumper.represent_dict)
yaml.SafeDumper.add_representer(Items, yaml.SafeDumper.represent_list)


def word_of(node: yaml.Node) -> str | None:
    """The text of an unquoted scalar that YAML does not read as text; `None` if it is empty."""
    is_word = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in WORD_TAGS
    return node.value or None if is_word else None


def read_yaml(path: Path, overrides: list[str] | None = None) -> Section:
    """The values of a file, of the files that it extends, and of `section.key=value` overrides, which win.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not sections; a duplicate key in a file or among the overrides; an override of another
            form; a token or a password.
    """
    _refuse_secrets(str(path), "the configuration's name")
    values, given = _read_with_bases(path), []
    for override in overrides or []:
        key, equals, text = override.partition("=")
        _refuse_secrets(override, f"override {key if re.fullmatch('[a-z_.]+', key) else '***'}=***")
        if not equals or not key:
            raise ValueError(f"override {override!r}: write section.key=value, for example training.max_updates=100")
        for other in given:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise ValueError(f"override {override!r}: {other}=… is given, too; give each value once")
        given.append(key)
        try:
            value, word = _read_value(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"override {override!r}: {text!r} is not a YAML value; quote it inside, as '\"{text}\"'"
            ) from error
        _set(values, key.split("."), value, word, override)
    return values


def _read_value(text: str) -> tuple[Any, str | None]:
    """The value of a YAML text, and its word."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return (None, None) if node is None else (loader.construct_document(node), word_of(node))
    finally:
        loader.dispose()


def _read_with_bases(path: Path) -> Section:
    if not path.is_file():
        raise FileNotFoundError(missing_config(path))
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):  # before an error repeats the line
            _refuse_secrets(line, f"configuration {path}, line {number}")
        values = _read_value(text)[0] or Section()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Section):
        found = READ_AS.get(type(values), type(values)).__name__
        raise ValueError(f"configuration {path} must hold sections (data, model, training, …), not a {found}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"configuration {path}: extends={base!r} must be the name of a file")
    return merged(_read_with_bases(path.parent / base), values)


def _refuse_secrets(text: str, where: str) -> None:
    """A run writes its configuration beside its model, and errors repeat values of it."""
    if SECRET.search(text):
        raise ValueError(
            f"{where}: a token or password has no place in a configuration, which is copied to where the model goes; "
            "log in with `hf auth login` or set HF_TOKEN"
        )


def merged(base: dict[str, Any], change: dict[str, Any]) -> Section:
    """A copy of `base` with the values of `change`, section by section."""
    result = Section(base, words_of(base))
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        if key == "model" and both and "model_type" in value:
            both = False  # another model does not take over the base's fields
        result.set(key, merged(result[key], value) if both else value, words_of(change).get(key))
    return result


def words_of(values: dict[str, Any]) -> dict[str, str]:
    """The words of a section; none for a dictionary that was not read from YAML."""
    return values.words if isinstance(values, Section) else {}


def _set(values: Section, keys: list[str], value: Any, word: str | None, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values.set(key, Section(), None)
        values = values[key]
        if not isinstance(values, Section):
            raise ValueError(f"override {override!r}: {key} is a value, not a section")
    values.set(keys[-1], value, word)


def build_section(cls: type, values: Any, where: str) -> Any:
    """A strict dataclass from nested dictionaries; errors name the dotted place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'configuration'}: expected a section with keys, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {dotted(where, key)}; known keys are {', '.join(known)}")
    types = get_type_hints(cls)
    words = words_of(values)
    built = {key: convert(types[key], value, dotted(where, key), words.get(key)) for key, value in values.items()}
    for name, f in known.items():
        if name not in built and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{dotted(where, name)} is missing")
    try:
        return cls(**built)
    except StrictDataclassFieldValidationError as error:
        name = field_of(error)
        if isinstance(error.__cause__, ValueError):  # raised by `bounds`; a wrong type is a TypeError
            raise ValueError(f"{dotted(where, name)}={built[name]!r} {error.__cause__}") from error
        raise ValueError(
            f"{dotted(where, name)}={built[name]!r}: expected {type_name(types[name])}, "
            f"got {READ_AS.get(type(built[name]), type(built[name])).__name__}"
        ) from error


def convert(annotation: Any, value: Any, where: str, word: str | None = None) -> Any:
    """A value of YAML in the field's type; an unsuitable value stays, and the strict dataclass refuses it.

    Sections become dataclasses. For a float, integers and "1e-9", which YAML reads as a string, become float.

    Args:
        word: the text, if YAML does not read it as text. It is taken where the field allows this very word, or text
            and no value of YAML's type: `no` is a precision and a file's name, but null is no name where None is
            allowed.
    """
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    section = next((choice for choice in choices if is_dataclass(choice)), None)
    if section is not None and not (value is None and NoneType in choices):
        return build_section(section, value, where)  # pyright: ignore[reportArgumentType] -- is_dataclass above
    for choice in choices:
        arguments = get_args(choice)
        if isinstance(value, Items) and get_origin(choice) is list:
            return [convert(arguments[0], item, f"{where}[{i}]", value.words.get(i)) for i, item in enumerate(value)]
        if isinstance(value, Section) and get_origin(choice) is dict and arguments[1] is not Any:
            return {k: convert(arguments[1], v, dotted(where, k), value.words.get(k)) for k, v in value.items()}
    if word is not None and any(get_origin(choice) is Literal and word in get_args(choice) for choice in choices):
        return word
    if float in choices and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    if word is not None and value is not None and str in choices and type(value) not in choices:
        return word
    return value


def field_of(error: StrictDataclassFieldValidationError) -> str:
    """The field's name, which huggingface_hub has in the message alone."""
    found = re.match("Validation error for field '(.+)'", str(error))
    assert found is not None, error
    return found[1]


def dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def type_name(annotation: Any) -> str:
    """An annotation in the words of a YAML file."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    names = []
    for choice in choices:
        if get_origin(choice) is Literal:
            names.extend(repr(value) for value in get_args(choice))
        else:
            names.append("null" if choice is NoneType else getattr(choice, "__name__", str(choice)))
    return " or ".join(names)
