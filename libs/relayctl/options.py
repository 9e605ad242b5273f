"""From a JSON schema to options of a command line, and from what was given to a body. Pure.

A field of an object inside has a dot in its name (`--limits.rpm 60`), a list is an option given several times, null is
`--no-field` or the word `null`. What fits no option, such as an object in a list, is given as JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from libs.relayctl.failures import Misuse

_REF: Final = "#/components/schemas/"
_DEPTH_MAX: Final = 4
_CHOICES_SHOWN_MAX: Final = 12
Schema = Mapping[str, Any]
Schemas = Mapping[str, Schema]
Place = Literal["body", "query", "header"]
Kind = Literal["text", "integer", "number", "boolean", "json"]
_KINDS: Final[Mapping[str, Kind]] = {
    "string": "text", "integer": "integer", "number": "number", "boolean": "boolean",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a body, one query parameter or one header."""

    flag: str
    place: Place
    path: tuple[str, ...]
    """Where its value goes: `("limits", "rpm")`; the name of a parameter."""
    kind: Kind = "text"
    choices: Sequence[str] = ()
    is_list: bool = False
    is_nullable: bool = False
    is_required: bool = False
    is_secret: bool = False
    is_parent: bool = False
    """An object whose fields are options of their own: it can only be null."""
    help: str = ""

    @property
    def dest(self) -> str:
        """Its name in what argparse has read; no name of ours has a colon."""
        return f"{self.place}:{'.'.join(self.path)}"

    @property
    def metavar(self) -> str:
        """What stands for the value."""
        if self.choices and len(self.choices) <= _CHOICES_SHOWN_MAX:
            return "|".join(self.choices)
        if self.kind == "boolean":
            return "true|false"
        return {"integer": "N", "number": "N", "json": "JSON"}.get(self.kind, "TEXT")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value: it is true, and its `--no-` form false."""
        return self.kind == "boolean" and not self.is_nullable and not self.is_list and self.place == "body"

    def value_of(self, text: str) -> Any:
        """What is sent. Raises ValueError whose words do not repeat a secret."""
        if text == "null" and self.is_nullable:
            return None
        if self.choices and text not in self.choices:
            raise ValueError(f"one of {', '.join(self.choices)}")
        match self.kind:
            case "integer":
                return _integer(text)
            case "number":
                return _json(text, "a number", int | float)
            case "boolean":
                return _json(text, "true or false", bool)
            case "json":
                return _json(text, "JSON", object)
        return text


def _integer(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise ValueError("a whole number")
    return int(text)


def _json(text: str, wanted: str, kind: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(wanted) from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and kind is not object):
        raise ValueError(wanted)
    return value


def of_parameter(parameter: Mapping[str, Any], schemas: Schemas) -> Option:
    """The option of a query parameter or a header."""
    name = str(parameter["name"])
    place: Place = "header" if parameter["in"] == "header" else "query"
    made = _option(name, parameter.get("schema", {}), schemas, required=bool(parameter.get("required")))
    help_text = str(parameter.get("description", "")) or made.help
    return replace(made, flag=f"--{dashed(name.lower())}", place=place, path=(name,), help=help_text)


def of_body(schema: Schema, schemas: Schemas) -> list[Option]:
    """The options of a body's fields, the required ones first."""
    found = list(_fields(schema, schemas, (), 0, required=True))
    return sorted(found, key=lambda one: not one.is_required)


def dashed(name: str) -> str:
    """As names are written on a command line."""
    return name.replace("_", "-")


def resolve(schema: Schema, schemas: Schemas) -> Schema:
    """What a reference leads to; a schema without one is itself."""
    for _ in range(_DEPTH_MAX):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = schemas.get(reference.removeprefix(_REF), {})
    return schema


def without_null(schema: Schema, schemas: Schemas) -> tuple[Schema, bool]:
    """The schema of what is not null, and whether null may be."""
    schema = resolve(schema, schemas)
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts is None:
        return schema, False
    left = [one for one in (resolve(part, schemas) for part in parts) if one.get("type") != "null"]
    is_nullable = len(left) < len(parts)
    if len(left) == 1:
        return {**left[0], **{name: schema[name] for name in ("default", "description") if name in schema}}, is_nullable
    if all("enum" in one for one in left):
        return {"enum": list(dict.fromkeys(value for one in left for value in one["enum"]))}, is_nullable
    return {"type": "string"} if all(one.get("type") == "string" for one in left) else {}, is_nullable


def _fields(schema: Schema, schemas: Schemas, path: tuple[str, ...], depth: int, *, required: bool) -> Iterator[Option]:
    needed = set(schema.get("required", ()))
    for name, raw in schema.get("properties", {}).items():
        inner, is_nullable = without_null(raw, schemas)
        is_needed = required and name in needed
        if "properties" in inner and depth < _DEPTH_MAX:
            yield from _parent(inner, (*path, name), is_needed=is_needed, is_nullable=is_nullable)
            yield from _fields(inner, schemas, (*path, name), depth + 1, required=is_needed)
        else:
            made = _option(name, raw, schemas, required=is_needed)
            flag = "--" + ".".join(dashed(part) for part in (*path, name))
            yield replace(made, flag=flag, path=(*path, name))


def _parent(inner: Schema, path: tuple[str, ...], *, is_needed: bool, is_nullable: bool) -> Iterator[Option]:
    if is_needed or is_nullable:
        flag = "--" + ".".join(dashed(part) for part in path)
        yield Option(
            flag=flag, place="body", path=path, is_parent=True, is_required=is_needed, is_nullable=is_nullable,
            help=str(inner.get("description", "")),
        )  # fmt: skip


def _option(name: str, raw: Schema, schemas: Schemas, *, required: bool) -> Option:
    schema, is_nullable = without_null(raw, schemas)
    is_list = schema.get("type") == "array"
    item = without_null(schema.get("items", {}), schemas)[0] if is_list else schema
    choices = [str(one) for one in item.get("enum", ()) if isinstance(one, str)]
    kind: Kind = "text" if choices else _KINDS.get(str(item.get("type")), "json")
    return Option(
        flag="", place="body", path=(name,), kind=kind, choices=choices, is_list=is_list, is_nullable=is_nullable,
        is_required=required, is_secret=bool(item.get("writeOnly")), help=_meaning(raw, schema, item),
    )  # fmt: skip


def _meaning(raw: Schema, schema: Schema, item: Schema) -> str:
    """What may be given, from the schema."""
    words = [str(raw.get("description") or schema.get("description") or "")]
    if item.get("enum") and len(item["enum"]) > _CHOICES_SHOWN_MAX:
        words.append("one of " + ", ".join(map(str, item["enum"])))
    if item.get("format") == "date-time":
        words.append("a time such as 2026-11-23T20:00:00Z")
    if "minimum" in item and "maximum" in item:
        words.append(f"{item['minimum']} to {item['maximum']}")
    if schema.get("default") is not None:
        words.append(f"{json.dumps(schema['default'], ensure_ascii=False)} if not given")
    if schema.get("type") == "array":
        words.append("may be given several times")
    if item.get("writeOnly"):
        words.append("- asks for it, or reads it from standard input")
    return "; ".join(word for word in words if word)


def body_of(options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of what was given, by `dest`. Raises Misuse for what is missing or does not go together."""
    body: dict[str, Any] = {}
    missing = []
    for option in sorted(options, key=lambda one: len(one.path)):
        if option.dest in given:
            _put(body, option, _listed(option, given[option.dest]))
        elif option.is_parent and option.is_required:
            _put(body, option, {})
        elif option.is_required:
            missing.append(option.flag)
    if missing:
        raise Misuse(f"missing: {', '.join(missing)}")
    return body


def _listed(option: Option, value: Any) -> Any:
    if not option.is_list or value is None or None not in value:
        return value
    if len(value) > 1:
        raise Misuse(f"{option.flag}: null and other values do not go together")
    return None


def _put(body: dict[str, Any], option: Option, value: Any) -> None:
    inside = body
    for name in option.path[:-1]:
        inside = inside.setdefault(name, {})
        if inside is None:
            raise Misuse(f"{option.flag}: {option.path[0]} is null already")
    inside[option.path[-1]] = value
