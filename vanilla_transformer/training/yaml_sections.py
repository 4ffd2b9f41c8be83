# SPDX-License-Identifier: Apache-2.0
"""YAML files of sections into strict dataclasses, with errors that name the dotted place."""

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

# A token of the Hub (shorter, it is a name), or who logs in at an address: https://user:password@host.
SECRET = re.compile(r"(hf|api_org)_[A-Za-z0-9]{30,}|://[^/?#\s]*@")


def read_yaml(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The values of a file, of those it extends, and of `section.key=value` overrides, which win.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not sections; an override that is not of that form; a token or a password.
    """
    _refuse_secrets(str(path), "the configuration's name")
    values = _read_with_bases(path)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        _refuse_secrets(override, f"override {key if re.fullmatch('[a-z_.]+', key) else '***'}=***")
        if not equals or not key:
            raise ValueError(f"override {override!r}: write section.key=value, for example training.max_updates=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"override {override!r}: {text!r} is not a YAML value; quote it inside, as '\"{text}\"'"
            ) from error
        _set(values, key.split("."), value, override)
    return values


def _read_with_bases(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"configuration {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):  # before anything of it is in an error
            _refuse_secrets(line, f"configuration {path}, line {number}")
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"configuration {path} must hold sections (data, model, training, …), not a {type(values)}")
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


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`, section by section; neither is touched."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        if key == "model" and both and "model_type" in value:
            both = False  # another model: the fields of the base's are not its own
        result[key] = merged(result[key], value) if both else value
    return result


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {key} is a value, not a section")
    values[keys[-1]] = value


def build_section(cls: type, values: Any, where: str) -> Any:
    """A strict dataclass from nested dictionaries; errors name the dotted place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'configuration'}: expected a section with keys, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {dotted(where, key)}; known keys are {', '.join(known)}")
    types = get_type_hints(cls)
    built = {key: convert(types[key], value, dotted(where, key)) for key, value in values.items()}
    for name, f in known.items():
        if name not in built and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{dotted(where, name)} is missing")
    try:
        return cls(**built)
    except StrictDataclassFieldValidationError as error:
        name = field_of(error)
        raise ValueError(
            f"{dotted(where, name)}={built[name]!r}: expected {type_name(types[name])}, "
            f"got {type(built[name]).__name__}"
        ) from error


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Sections to dataclasses; whole numbers and YAML's "1e-9", which it reads as a string, to float."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    section = next((choice for choice in choices if is_dataclass(choice)), None)
    if section is not None and not (value is None and NoneType in choices):
        return build_section(section, value, where)  # pyright: ignore[reportArgumentType] -- is_dataclass above
    if float in choices and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value  # the strict dataclass names it
    return value


def field_of(error: StrictDataclassFieldValidationError) -> str:
    """huggingface_hub names the field in the message alone."""
    found = re.match("Validation error for field '(.+)'", str(error))
    assert found is not None, error
    return found[1]


def dotted(where: str, key: str) -> str:
    """The name of a key within a section."""
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
