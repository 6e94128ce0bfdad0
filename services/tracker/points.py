"""What the backends see of a record: numbers by name, and parameters."""

from .jsonl import Record


def points(record: Record) -> dict[str, float]:
    """Return a record's numbers by name: `service/metric`, or `hp/knob` for the change of a knob."""
    values = record.get("values")
    if not isinstance(values, dict):
        return {}
    if record.get("event") == "knob":
        values = {f"hp/{values.get('knob')}": values.get("value")}
    elif "event" in record:
        return {}
    else:
        service = str(record.get("source", "run")).partition("#")[0]
        values = {f"{service}/{name}": value for name, value in values.items()}
    return {name: number for name, value in values.items() if (number := _number(value)) is not None}


def parameters(record: Record) -> Record:
    """Return the run's parameters by name, if this is the record that holds them."""
    values = record.get("values")
    return values if record.get("event") == "params" and isinstance(values, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    return float(value) if isinstance(value, int | float | str) else None
