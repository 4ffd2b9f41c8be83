# SPDX-License-Identifier: Apache-2.0
"""YAML files of sections into strict dataclasses, with errors that name the dotted place."""

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

from vanilla_transformer.console.shipped_configs import missing_config

# A token of the Hub (a shorter word is a name), or credentials in an address: https://user:password@host.
SECRET = re.compile(r"(hf|api_org)_[A-Za-z0-9]{30,}|://[^/?#\s]*@")


class Word(str):
    """An unquoted word that YAML does not read as text: `no` is false, `010` is 8, `2024-01-01` a date.

    `convert` chooses between the word and YAML's `value` by the type of the field. Messages show the value.
    """

    tag: str
    value: Any

    def __repr__(self) -> str:
        return repr(self.value)


class _Loader(yaml.SafeLoader):
    """Keeps words; refuses duplicate keys, where PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.add(key)
        self.flatten_mapping(node)  # merges `<<`, whose keys come first and may be given again
        return {self._key(key): self.construct_object(value, deep=True) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", node.start_mark)
        return node.value  # a word, even if YAML reads it as another type

    def construct_word(self, node: yaml.ScalarNode) -> Any:
        value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        if node.style is not None:  # quoted
            return value
        word = Word(node.value)
        word.tag, word.value = node.tag, value
        return word


for name in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{name}", _Loader.construct_word)
yaml.SafeDumper.add_representer(Word, lambda dumper, word: dumper.represent_scalar(word.tag, word))


def read_yaml(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The values of a file, of the files that it extends, and of `section.key=value` overrides, which win.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not sections; a duplicate key in a file or among the overrides; an override of another
            form; a token or a password.
    """
    _refuse_secrets(str(path), "the configuration's name")
    return apply_overrides(_read_with_bases(path), overrides)


def apply_overrides(values: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    """The values with `section.key=value` overrides, which win; raises as `read_yaml` does."""
    given = []
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
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(
                f"override {override!r}: {text!r} is not a YAML value; quote it inside, as '\"{text}\"'"
            ) from error
        *sections, last = key.split(".")
        section = values
        for name in sections:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise ValueError(f"override {override!r}: {name} is a value, not a section")
        section[last] = value
    return values


def _read_with_bases(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(missing_config(path))
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):  # before an error repeats the line
            _refuse_secrets(line, f"configuration {path}, line {number}")
        values = yaml.load(text, _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = type(plain(values)).__name__
        raise ValueError(f"configuration {path} must hold sections (data, model, training, …), not a {found}")
    base = plain(values.pop("extends", None))
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


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the values of `change`, section by section."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        if key == "model" and both and "model_type" in value:
            both = False  # another model does not take over the base's fields
        result[key] = merged(result[key], value) if both else value
    return result


def build_section(cls: type, values: Any, where: str) -> Any:
    """A strict dataclass from nested dictionaries; errors name the dotted place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'configuration'}: expected a section with keys, got {values!r}")
    types = get_type_hints(cls)
    built = convert_fields(types, values, where)
    for field in fields(cls):
        if field.name not in built and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_dotted(where, field.name)} is missing")
    try:
        return cls(**built)
    except StrictDataclassFieldValidationError as error:
        raise field_error(error, types, built, where) from error


def convert_fields(types: dict[str, Any], values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a section in the types of its fields; raise ValueError for an unknown key."""
    for key in values:
        if key not in types:
            raise ValueError(f"unknown key {_dotted(where, key)}; known keys are {', '.join(types)}")
    return {key: _convert(types[key], value, _dotted(where, key)) for key, value in values.items()}


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """A value of YAML in the field's type; an unsuitable value stays, and the strict dataclass refuses it.

    Sections become dataclasses. For a float, integers and "1e-9", which YAML reads as a string, become float. A `Word`
    stays one where the field allows it, becomes text where the field allows this very word, or text and no value of
    YAML's type (`no` is a precision and a file's name), and else is YAML's value.
    """
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    section = next((choice for choice in choices if is_dataclass(choice)), None)
    is_listed = isinstance(value, list) and any(get_origin(choice) is list for choice in choices)
    if section is not None and not is_listed and not (value is None and NoneType in choices):
        return build_section(section, value, where)  # pyright: ignore[reportArgumentType] -- is_dataclass above
    for choice in choices:
        arguments = get_args(choice)
        if isinstance(value, list) and get_origin(choice) is list:
            return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, dict) and get_origin(choice) is dict:
            return {key: _convert(arguments[1], item, _dotted(where, key)) for key, item in value.items()}
    if Word in choices:
        return value
    read, is_word = plain(value), isinstance(value, Word)
    if is_word and any(get_origin(choice) is Literal and value in get_args(choice) for choice in choices):
        return str(value)
    if float in choices and isinstance(read, (str, int)) and not isinstance(read, bool):
        try:
            return float(read)
        except ValueError:
            return read
    return str(value) if is_word and str in choices and type(read) not in choices else read


def plain(value: Any) -> Any:
    """The value as YAML reads it, without any `Word`."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Word) else value


def field_error(
    error: StrictDataclassFieldValidationError, types: dict[str, Any], values: dict[str, Any], where: str
) -> ValueError:
    """What is wrong with a field, in the words of a YAML file."""
    found = re.match("Validation error for field '(.+)'", str(error))  # huggingface_hub has the name there alone
    assert found is not None, error
    name = found[1]
    given = f"{_dotted(where, name)}={values[name]!r}"
    if isinstance(error.__cause__, ValueError):  # raised by `bounds`; a wrong type is a TypeError
        return ValueError(f"{given} {error.__cause__}")
    return ValueError(f"{given}: expected {_type_name(types[name])}, got {type(values[name]).__name__}")


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _type_name(annotation: Any) -> str:
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    names = []
    for choice in choices:
        if get_origin(choice) is Literal:
            names.extend(repr(value) for value in get_args(choice))
        else:
            names.append("null" if choice is NoneType else getattr(choice, "__name__", str(choice)))
    return " or ".join(names)
