"""Values that fulfil a JSON schema: the inputs of tools, and structured answers."""

from typing import Any, Final

_SCHEMA_DEPTH_MAX: Final = 6
_SAMPLES: Final = {
    "command": "echo hello",
    "file_path": "example.txt",
    "path": "example.txt",
    "url": "http://127.0.0.1/",
    **dict.fromkeys(("place", "city", "location"), "Oslo"),
}


def sample(schema: Any, name: str = "value", depth: int = 0) -> Any:
    """A value that a JSON schema takes: its required properties, of sensible types."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH_MAX:
        return None
    chosen = [schema[word] for word in ("const", "default") if word in schema] + list(schema.get("enum") or [])
    if chosen:
        return chosen[0]
    branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if branches:
        return sample(branches[0], name, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    return _sample_of(kind[0] if isinstance(kind, list) else kind, schema, name, depth)


def _sample_of(kind: str, schema: dict[str, Any], name: str, depth: int) -> Any:
    match kind:
        case "object":
            known = schema.get("properties") or {}
            return {key: sample(known.get(key, {}), key, depth + 1) for key in schema.get("required") or []}
        case "array":
            return [sample(schema.get("items") or {}, name, depth + 1)] * max(1, schema.get("minItems", 1))
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    return _SAMPLES.get(name, f"some {name}".ljust(schema.get("minLength", 0), "."))
