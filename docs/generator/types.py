"""What a JSON schema says of one value, in a few words."""

from typing import Any

Schema = dict[str, Any]

_BOUNDS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
_NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "bool"}
_POWERS = {2**power: f"2^{power}" for power in (31, 62, 63)} | {2**31 - 1: "2^31 - 1"}


def words(schema: Schema) -> str:
    """Type and bounds, such as `int >= 1 and <= 64`, `a | b`, or `list of float, 2 items`."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            options = [words(option) for option in schema[key] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(options))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "allOf" in schema:
        return words(schema["allOf"][0])
    if "enum" in schema:
        return " | ".join(str(option) for option in schema["enum"])
    if "const" in schema:
        return f"always {schema['const']}"
    return _container(schema) if schema.get("type") in ("array", "object") else _scalar(schema)


def _container(schema: Schema) -> str:
    if schema["type"] == "array":
        if schema.get("items") == {"type": "integer"} and schema.get("maxItems") == schema.get("minItems") == 2:
            return "[int, int]"
        return f"list of {words(schema.get('items', {}))}{_sizes(schema, 'minItems', 'maxItems', 'items')}"
    values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties") or {}]
    return f"mapping to {words(values[0])}{_sizes(schema, 'minProperties', 'maxProperties', 'keys')}"


def _scalar(schema: Schema) -> str:
    name = str(schema.get("type", "anything"))
    limits = [f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS if key in schema]
    if "multipleOf" in schema:
        limits.append(f"a multiple of {schema['multipleOf']}")
    if "pattern" in schema:
        limits.append(f"matching {schema['pattern']}")
    text = f"{_NAMES.get(name, name)} {' and '.join(limits)}".strip()
    return text + _sizes(schema, "minLength", "maxLength", "characters")


def _sizes(schema: Schema, low: str, high: str, what: str) -> str:
    least, most = schema.get(low, 0), schema.get(high)
    if most is None:
        return f", at least {least} {what}" if least else ""
    if least == most:
        return f", {most} {what}"
    return f", {least} to {most} {what}" if least else f", at most {most} {what}"


def _number(value: float) -> str:
    return _POWERS.get(int(value), f"{value:g}" if isinstance(value, float) else str(value))
