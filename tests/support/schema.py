"""Hypothesis strategies out of a message's JSON schema: every value the model allows, and nothing else."""

from typing import Any

from hypothesis import strategies as st

INT_BOUND = 2**62
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=20)


def strategy(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A strategy for one (sub)schema."""
    if "$ref" in schema:
        return strategy(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        return st.one_of([strategy(part, defs) for part in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    return _of_type(schema, defs)


def _of_type(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    match schema.get("type"):
        case "integer":
            low, high = schema.get("minimum", -INT_BOUND), schema.get("maximum", INT_BOUND)
            return st.integers(low, high)
        case "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum"))
            most = schema.get("maximum")
            return st.floats(low, most, allow_nan=False, allow_infinity=False, exclude_min="exclusiveMinimum" in schema)
        case "string":
            return _text(schema)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            size = schema.get("minItems", 0)
            return st.lists(
                strategy(schema["items"], defs), min_size=size, max_size=min(schema.get("maxItems", 3), max(size, 3))
            )
        case "object":
            return _object(schema, defs)
    raise AssertionError(f"no strategy for {schema}")


def _text(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        most, least = schema.get("maxLength", 60), schema.get("minLength", 0)
        return st.from_regex(schema["pattern"].replace("$", r"\Z"), fullmatch=True).filter(
            lambda s: least <= len(s) <= most
        )
    most = min(schema.get("maxLength", 20), 20)
    return st.text(CHARACTERS, min_size=schema.get("minLength", 0), max_size=most)


def _object(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        values = strategy(schema["additionalProperties"], defs) if schema.get("additionalProperties") else st.none()
        return st.dictionaries(TEXT, values, max_size=3)
    required = {
        key: strategy(part, defs) for key, part in schema["properties"].items() if key in schema.get("required", [])
    }
    optional = {key: strategy(part, defs) for key, part in schema["properties"].items() if key not in required}
    return st.fixed_dictionaries(required, optional=optional)
