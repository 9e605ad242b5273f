"""Bodies for calls of the control plane: typed by hand where it matters, else the smallest that the type allows."""

from typing import Any, Final

from msgspec.inspect import (
    BoolType,
    CustomType,
    DateTimeType,
    DictType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    StrType,
    StructType,
    UnionType,
    type_info,
)

from services.admin.resource import Operation

API_KEY: Final = "sk-ant-0123456789abcdef"
BODIES: Final[dict[str, dict[str, Any]]] = {
    "signing_in_sign_in": {"email": "nobody@example.com", "password": "a long pass phrase"},
    "signing_in_accept": {"token": "rli_x.y", "password": "a long pass phrase"},
    "signing_in_change_password": {"old": "not the old one", "new": "a long pass phrase"},
    "operators_create": {"name": "x", "email": "", "role": "viewer"},
    "credits_create": {"amount_usd": "1", "reason": "x"},
    "members_change": {"name": "taken over"},
    "keys_change": {"name": "taken over"},
    "key_batches_create": {"keys": [{"name": "x"}]},
    "codes_create": {"count": 1, "amount_usd": "1", "reason": "x"},
    "codes_redeem": {"code": "AAAAA-AAAAA-AAAAA-AAAAA-AAAAA"},
    "upstreams_create": {"name": "x", "api_key": API_KEY},
    "tokens_create_relay": {"name": "x", "role": "viewer", "scopes": ["usage:read"]},
    "tokens_create_account": {"name": "x", "role": "billing", "scopes": ["usage:read"]},
}
"""Of operations whose smallest body means nothing."""
_PLAIN: Final[dict[type[Any], Any]] = {
    IntType: 1,
    FloatType: 1.0,
    BoolType: False,
    DictType: {},
    DateTimeType: "2099-01-01T00:00:00Z",
}


def body_of(operation: Operation) -> dict[str, Any] | None:
    """A body it can read; None if it takes none."""
    if operation.body is None:
        return None
    return BODIES.get(operation.id) or smallest(operation.body)


def smallest(kind: Any) -> Any:
    """The smallest value of a type: required fields alone."""
    return _of(type_info(kind))


def texts_of(kind: Any) -> list[tuple[str, ...]]:
    """The paths to every field of text inside a struct; a number stands for any place of a list."""
    return list(_texts(type_info(kind), ()))


def with_value(body: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of a body in which that field has that value, with what leads to it."""
    if not path:
        return value
    name, *rest = path
    if name == "[]":
        return [with_value(body[0] if body else {}, tuple(rest), value)]
    inside = body if isinstance(body, dict) else {}
    return {**inside, name: with_value(inside.get(name), tuple(rest), value)}


def _of(kind: Any) -> Any:
    match kind:
        case Metadata():
            return _of(kind.type)
        case StructType():
            return {field.encode_name: _of(field.type) for field in kind.fields if field.required}
        case StrType():
            return "x" * max(kind.min_length or 1, 1)
        case LiteralType():
            return kind.values[0]
        case UnionType():
            return _of(kind.types[0])
        case ListType():
            return [_of(kind.item_type)] * (kind.min_length or 0)
    return next((value for one, value in _PLAIN.items() if isinstance(kind, one)), None)


def _texts(kind: Any, path: tuple[str, ...]) -> Any:
    match kind:
        case Metadata():
            yield from _texts(kind.type, path)
        case StructType():
            for field in kind.fields:
                yield from _texts(field.type, (*path, field.encode_name))
        case StrType() | LiteralType() | DateTimeType() | CustomType():
            yield path
        case UnionType():
            for one in kind.types:
                yield from _texts(one, path)
        case ListType():
            yield from _texts(kind.item_type, (*path, "[]"))
