"""Configuration: topology files, overlays and overrides to one checked topology.

`yaml_nodes` (with `scalars`) reads text to a `tree` that knows its lines, `compose` folds files and
overrides, `topology` (with `model` and `registry`) says what a run may be, `validate` turns mistakes into
`file:line:col` messages, `load` ties them together; `schema` and `explain` describe it.

Imports neither torch nor zmq, and no service.
"""

from .errors import ConfigError
from .explain import explain
from .load import Loaded, Row, load_topology, parse_resolved, topology_hash
from .model import BuildConfig, ModelConfig
from .registry import KindError, Registry, default_registry, service_class
from .schema import topology_schema
from .topology import Topology

__all__ = [
    "BuildConfig",
    "ConfigError",
    "KindError",
    "Loaded",
    "ModelConfig",
    "Registry",
    "Row",
    "Topology",
    "default_registry",
    "explain",
    "load_topology",
    "parse_resolved",
    "service_class",
    "topology_hash",
    "topology_schema",
]
