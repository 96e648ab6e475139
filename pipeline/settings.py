"""Configs: one YAML plus `key.sub=value` overrides, checked before any work starts.

Shared with `tcjepa`; needs only pydantic and OmegaConf. A config class lives beside the code it
configures and derives from `Settings`; every field carries a `description` that ends with its unit
in brackets where it has one, which is what `--help` prints.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined


class Settings(BaseModel):
    """Base of every config section: immutable, no unknown keys, no silent type coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what is allowed and the fix."""


#: Marks, as `Field(json_schema_extra=PACE)`, a setting of how fast, how patiently or where work is
#: done: it must not affect what comes out, and so is part of no fingerprint.
PACE: Final[dict[str, JsonValue]] = {"pace": True}

S = TypeVar("S", bound=Settings)


def load(cls: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Read a config of class `cls` from a YAML file (or nothing) and dotted overrides.

    Raises `ConfigError` for an unreadable file, a malformed override, an unknown key (with the
    nearest known one), a wrong type or a combination that the class refuses.
    """
    try:
        merged = OmegaConf.merge(_read_yaml(path), _read_overrides(overrides))
        data = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a key of a list's item
        raise ConfigError(f"config interpolation or override failed: {error}") from error
    return build(cls, cast(dict[str, Any], data), where=str(path) if path else "overrides")


def load_text(cls: type[S], text: str, where: str) -> S:
    """Read a config that `to_yaml` wrote; raises `ConfigError`."""
    try:
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{where} is not readable: {error}") from error
    return build(cls, cast(dict[str, Any], data), where=where)


def build(cls: type[S], data: dict[str, Any], where: str = "config") -> S:
    """Validate plain data as a config of class `cls`; raises `ConfigError`.

    Strict as JSON is: "5" and true are no numbers, and a list may stand for a tuple.
    """
    text = json.dumps(data)
    try:
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = [_explain(cls, json.loads(text), detail) for detail in error.errors()]
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def to_yaml(settings: Settings) -> str:
    """Return the resolved config, every key present, as YAML that `load` accepts."""
    data = _escaped(settings.model_dump(mode="json"))
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def effective(value: Any) -> Any:
    """Return settings as plain data without those marked `PACE`, at every depth."""
    if isinstance(value, Settings):
        fields = type(value).model_fields
        return {
            name: effective(getattr(value, name))
            for name, field in fields.items()
            if field.json_schema_extra != PACE
        }
    if isinstance(value, (list, tuple)):
        return [effective(item) for item in value]
    if isinstance(value, dict):
        return {key: effective(item) for key, item in value.items()}
    return value


def describe(cls: type[Settings]) -> list[tuple[str, str, str]]:
    """Return (dotted key, default, description) of every key, for `--help`."""
    return list(_walk(cls, ""))


class _Dumper(yaml.SafeDumper):
    """Quotes strings such as 1e-3, which OmegaConf reads as numbers and YAML 1.1 does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _escaped(value: Any) -> Any:
    """Return plain data with `${` escaped, so that reading it interpolates nothing."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def _read_yaml(path: str | Path | None) -> Any:
    if path is None:
        return OmegaConf.create({})
    try:
        loaded = OmegaConf.load(Path(path))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config file {path} is not readable YAML: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"config file {path} must hold `key: value` pairs at its top level")
    return loaded


def _read_overrides(overrides: Sequence[str]) -> Any:
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"override {item!r} must have the form key.sub=value")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"overrides {list(overrides)} cannot be read: {error}") from error


def _section_types(annotation: Any) -> list[type[Settings]]:
    """Return the `Settings` classes an annotation admits (through unions, lists and Annotated)."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    found: list[type[Settings]] = []
    for inner in typing.get_args(annotation):
        found += _section_types(inner)
    return found


def _walk(cls: type[Settings], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in cls.model_fields.items():
        key = f"{prefix}{name}"
        sections = _section_types(field.annotation)
        is_list = typing.get_origin(field.annotation) in (list, tuple)
        if not sections:
            yield key, _default_text(field), _description(field)
            continue
        if is_list or len(sections) > 1 or _optional(field.annotation):
            yield key, _default_text(field), _description(field)
        for section in sections:
            yield from _walk(section, f"{key}[]." if is_list else f"{key}.")


def _optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _description(field: FieldInfo) -> str:
    text = field.description or ""
    if typing.get_origin(field.annotation) is typing.Literal:
        text += f" (one of {', '.join(map(str, typing.get_args(field.annotation)))})"
    return text


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Settings):
        return getattr(default, "kind", "…")
    if isinstance(default, (list, tuple)) and any(isinstance(item, Settings) for item in default):
        return "[" + ", ".join(getattr(item, "kind", "…") for item in default) + "]"
    return "null" if default is None else str(default)


def _explain(cls: type[Settings], data: Any, detail: ErrorDetails) -> str:
    """Turn one pydantic error into a line that names the key, what is allowed and the fix."""
    key, owners = _locate(cls, data, detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted({name for owner in owners for name in owner.model_fields})
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
        parent = key.rpartition(".")[0]
        hint = f"did you mean {parent + '.' if parent else ''}{near[0]}? " if near else ""
        return f"{key}: unknown key; {hint}known keys here: {', '.join(known)}"
    if kind == "missing":
        return f"{key}: required, not given"
    if kind.startswith("union_tag"):
        members = _locate(cls, data, (*detail["loc"], "kind"))[1]
        expected = ", ".join(filter(None, map(_tag, members)))
        given = context.get("tag", "nothing")
        near = difflib.get_close_matches(str(given), expected.split(", "), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}.kind: got {given}, allowed: {expected}{hint}"
    if kind == "literal_error":
        expected = str(context.get("expected", "")).replace("'", "")
        near = difflib.get_close_matches(
            str(detail["input"]), expected.replace(" or ", ", ").split(", ")
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: got {detail['input']!r}, allowed: {expected}{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _locate(
    cls: type[Settings], data: Any, loc: tuple[int | str, ...]
) -> tuple[str, list[type[Settings]]]:
    """Return the dotted key of an error and the classes that own it.

    Pydantic puts union tags and type names into `loc`; those are no keys and are left out.
    """
    parts: list[str] = []
    owners: list[type[Settings]] = [cls]
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(step, int):
            parts.append(str(step))
            data = data[step] if isinstance(data, (list, tuple)) and step < len(data) else None
            continue
        tagged = [owner for owner in owners if _tag(owner) == step]
        if tagged and not (isinstance(data, dict) and step in data):
            owners = tagged
            continue
        if any(step in owner.model_fields for owner in owners):
            parts.append(step)
            data = data.get(step) if isinstance(data, dict) else None
            if not last:
                fields = [o.model_fields[step] for o in owners if step in o.model_fields]
                owners = [s for f in fields for s in _section_types(f.annotation)] or owners
        elif isinstance(data, dict) and step in data:
            parts.append(step)
            data = data.get(step) if isinstance(data, dict) else None
    return ".".join(parts), owners


def _tag(cls: type[Settings]) -> str | None:
    field = cls.model_fields.get("kind")
    if field is None or typing.get_origin(field.annotation) is not typing.Literal:
        return None
    return str(typing.get_args(field.annotation)[0])


__all__ = [
    "PACE",
    "ConfigError",
    "Settings",
    "build",
    "describe",
    "effective",
    "load",
    "load_text",
    "to_yaml",
]
