"""docs/configuration.md: every key of a topology, from the classes that check it."""

import inspect
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from midflight.kernel.config import Topology, service_class
from midflight.kernel.config.fields import classes_in
from midflight.kernel.config.registry import builtin_registry
from midflight.kernel.spec import ServiceSpec

from .markdown import NOTICE, as_json, code, table
from .types import words

Row = list[str]
HEAD = ("key", "type and bounds", "default", "meaning")

INTRO = """# Configuration

A topology is one YAML file: the name of a run, its model and its services. `midflight config check FILE` says what is
wrong with one and where; `config show --origin` says where each value was written; `config explain KEY` repeats one
line of this page. `configs/topology.schema.json` is the same for editors: begin a file with
`# yaml-language-server: $schema=topology.schema.json`, with the path to that file.

- `extends: base.yaml` (or a list) lays the file upon others; `-f OVERLAY` lays files upon it; `key.path=value` on the
  command line comes last. Mappings are merged, lists and scalars replace, `null` deletes a key.
- A relative path means relative to the file it was written in.
- `${env:NAME}` and `${env:NAME:-default}` are replaced inside strings; `$${` is a literal `${`.
- Numbers, booleans and null are those of YAML 1.2: `1e-6` is a number, `no` is a string.
- A slot is of the kind it is named after unless it says `kind:`.
- A data source is a file (JSON, JSONL, CSV, Parquet, Arrow), a folder (written by `datasets`, or with data files in
  it), a hub name, either of these two with `:configuration`, any of them as `split@source`, or a built-in task such as
  `task:rev6-10?rows=4096&seed=1&noise=0.5` (`services/data/tasks.py`).
- What may change while a run goes on is a knob, not a key: see [knobs.md](knobs.md).
"""


def page() -> str:
    """The whole page."""
    parts = [NOTICE, INTRO, "## The topology\n", table(HEAD, rows(Topology)), "## Every service\n"]
    parts += [f"{_first_line(ServiceSpec)}\n", table(HEAD, rows(ServiceSpec))]
    for kind in builtin_registry():
        cls = service_class(kind, builtin_registry())
        parts += [f"## `{kind}`\n", f"{inspect.getdoc(cls)} Runs `{cls.entry}`.\n", table(HEAD, own_rows(cls))]
    return "\n".join(parts)


def own_rows(cls: type[ServiceSpec]) -> Iterator[Row]:
    """The keys a kind adds to those of every service, and those whose default it changes."""
    for row in rows(cls):
        inherited = ServiceSpec.model_fields.get(row[0].strip("`"))
        if inherited is None:
            yield row
        elif row[0] != "`kind`" and inherited.get_default() != cls.model_fields[row[0].strip("`")].get_default():
            yield [*row[:3], inherited.description or ""]


def rows(cls: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None) -> Iterator[Row]:
    """One row a key, nested sections by dotted names below their own row; `defaults` are those of the section."""
    schema = cls.model_json_schema()["properties"] if cls is not Topology else _topology_properties()
    for name, info in cls.model_fields.items():
        inner = None if name == "services" else next(iter(classes_in(info.annotation)), None)
        default = getattr(defaults, name) if defaults else info.get_default()
        about = info.description or (_first_line(inner) if inner else "")
        kind = "section" if inner else words(schema[name])
        yield [code(prefix + name), kind, _default(info, default, inner is not None), about]
        if inner:
            below = default if isinstance(default, BaseModel) else None
            yield from rows(inner, f"{prefix}{name}.", below)


def _topology_properties() -> dict[str, dict[str, object]]:
    properties: dict[str, dict[str, object]] = Topology.model_json_schema()["properties"]
    properties["services"] = {"type": "object", "additionalProperties": {"$ref": "a/service"}, "minProperties": 1}
    return properties


def _default(info: FieldInfo, default: object, section: bool) -> str:
    if info.is_required():
        return "required"
    if default is None:
        return "none"
    return "see below" if section else code(as_json(default))


def _first_line(cls: type[BaseModel]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
