"""Price books while they are worked on: documents of JSON in, documents out. Pure; a book that was published never comes here.

A document is what pricebook.parse reads. Rows are compared by what they say, not by how they are written.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Final

import msgspec

from libs.common import pricebook

_PRICE: Final = r"^[0-9]{1,4}(\.[0-9]{1,4})?$"
Price = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": _PRICE})]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
ModelId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
_FAMILIES: Final = ("opus", "sonnet", "haiku", "fable")


class Prices(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Dollars per million tokens, as decimal strings with at most four decimals; none is zero."""

    input: Price
    output: Price
    cache_write_5m: Price
    cache_write_1h: Price
    cache_read: Price


class PriceRow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model costs and may do."""

    rates: Prices
    context_tokens_max: Tokens
    output_tokens_max: Tokens
    hold_output_tokens_max: Tokens
    """max_tokens beyond this is forwarded, but not held for."""
    aliases: list[ModelId] = []
    long_context_above: Tokens | None = None
    """Input tokens, cached ones included, above which `long_context` prices the whole request."""
    long_context: Prices | None = None
    fast: Prices | None = None


class Difference(msgspec.Struct, kw_only=True):
    """How one model differs."""

    model: str
    change: str
    """added, removed or changed"""
    fields: dict[str, list[Any]]
    """Name → what it was, what it is."""


class _Listed(msgspec.Struct):
    rates: dict[str, str]
    long_context_above: int | None = None
    long_context: dict[str, str] | None = None
    fast: dict[str, str] | None = None


class PublicList(msgspec.Struct):
    """Prices as a public list has them."""

    as_of: str
    source: str
    models: dict[str, _Listed]


@cache
def public_list() -> PublicList:
    """The one that is shipped."""
    text = (files("services.admin.prices") / "public-list.json").read_bytes()
    return msgspec.json.decode(text, type=PublicList)


def shipped_text(version: str) -> str:
    """The document of a shipped book. Raises FileNotFoundError."""
    return (files("libs.common") / "pricebooks" / f"{version}.json").read_text()


def rows(text: str) -> dict[str, PriceRow]:
    """The rows of a document, by model."""
    document = json.loads(text)
    return {one.pop("id"): msgspec.convert(one, PriceRow) for one in document["models"]}


def with_row(text: str, model: str, row: PriceRow) -> str:
    """The document with that row instead of the model's, or added at its end. Raises ValueError if it is not sound then."""
    document = json.loads(text)
    models = document["models"]
    entry = {"id": model, **msgspec.to_builtins(row)}
    at = next((number for number, one in enumerate(models) if one["id"] == model), len(models))
    models[at : at + 1] = [entry]
    return _sound(document)


def without_row(text: str, model: str) -> str:
    """The document without the model. Raises LookupError if it is not there, ValueError if no model would be left."""
    document = json.loads(text)
    left = [one for one in document["models"] if one["id"] != model]
    if len(left) == len(document["models"]):
        raise LookupError(model)
    document["models"] = left
    return _sound(document)


def named(text: str, version: str) -> str:
    """The document under that version. Raises ValueError if it cannot be published so."""
    document = json.loads(text) | {"version": version}
    changed = _dumped(document)
    pricebook.read_published(version, changed)
    return changed


def differences(before: str, after: str) -> list[Difference]:
    """What was changed, model by model."""
    old, new = ({model: msgspec.to_builtins(row) for model, row in rows(text).items()} for text in (before, after))
    found = []
    for model in sorted(old.keys() | new.keys()):
        change = "added" if model not in old else "removed" if model not in new else "changed"
        fields = _fields(old.get(model, {}), new.get(model, {}))
        if fields:
            found.append(Difference(model=model, change=change, fields=fields))
    return found


def departures(text: str, public: PublicList) -> list[Difference]:
    """Where a book departs from a public list; models that only one of them has are told too."""
    priced = ("rates", "long_context", "long_context_above", "fast")
    ours = {
        model: {name: value for name, value in msgspec.to_builtins(row).items() if name in priced}
        for model, row in rows(text).items()
    }
    theirs = {
        model: {name: value for name, value in msgspec.to_builtins(row).items() if value is not None}
        for model, row in public.models.items()
    }
    found = []
    for model in sorted(ours.keys() | theirs.keys()):
        fields = _fields(theirs.get(model, {}), ours.get(model, {}))
        if fields:
            change = "added" if model not in theirs else "removed" if model not in ours else "changed"
            found.append(Difference(model=model, change=change, fields=fields))
    return found


def prepared_row(text: str, model: str, *, context_tokens_max: int | None, output_tokens_max: int | None) -> PriceRow:
    """A row for a model nobody has priced yet: from the public list if it is there, else like the newest of its family.

    Somebody must look at it: a model may cost anything.
    """
    known = rows(text)
    family = next((one for one in _FAMILIES if one in model), "")
    like = next((row for name, row in known.items() if family and family in name), next(iter(known.values())))
    listed = public_list().models.get(model)
    row = msgspec.structs.replace(like, aliases=[])
    if listed is not None:
        row = msgspec.structs.replace(
            row,
            rates=msgspec.convert(listed.rates, Prices),
            long_context_above=listed.long_context_above,
            long_context=msgspec.convert(listed.long_context, Prices | None),
            fast=msgspec.convert(listed.fast, Prices | None),
        )
    output = output_tokens_max or row.output_tokens_max
    return msgspec.structs.replace(
        row,
        context_tokens_max=context_tokens_max or row.context_tokens_max,
        output_tokens_max=output,
        hold_output_tokens_max=min(row.hold_output_tokens_max, output),
    )


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Leaves that differ: `rates.input` → [before, after]. Prices are compared as numbers."""
    before, after = _leaves(old), _leaves(new)
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if _number(before.get(name)) != _number(after.get(name))
    }


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, Mapping):
            found |= _leaves(one, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = one
    return found


def _number(value: Any) -> Any:
    """A price without the zeros behind it."""
    return value.rstrip("0").rstrip(".") if isinstance(value, str) and "." in value else value


def _sound(document: dict[str, Any]) -> str:
    text = _dumped(document)
    pricebook.parse(text.encode())
    return text


def _dumped(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1)
