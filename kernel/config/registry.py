"""From a service's `kind` to its config class.

The built-in kinds are the dict `midflight.services.SERVICES`, reached by name because the kernel must not
depend on services; other packages add kinds by entry points of the group `midflight.services`; a kind of
the form `package.module:ConfigClass` names its config class itself. Only the config module of a kind that is
used gets imported, never the service itself.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache

from midflight.kernel.spec import ServiceSpec
from midflight.messages.control import MAX_KIND

from .errors import suggest

Registry = Mapping[str, str | type[ServiceSpec]]
"""Kind to config class, or to its import path `package.module:Class`."""

GROUP = "midflight.services"


class KindError(ValueError):
    """A kind that nothing provides, or whose config class cannot be loaded."""


@cache
def default_registry() -> Registry:
    """The built-in kinds and those of installed packages; a built-in name cannot be taken over."""
    outside = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    return {**outside, **builtin_registry()}


@cache
def builtin_registry() -> Registry:
    """The kinds that come with midflight."""
    services: Registry = importlib.import_module("midflight.services").SERVICES
    return services


def service_class(kind: str, registry: Registry | None = None) -> type[ServiceSpec]:
    """The config class of `kind`. Raises KindError, with the nearest name when there is one."""
    if len(kind) > MAX_KIND:
        raise KindError(f"kind {kind[:40]!r}... has {len(kind)} characters; at most {MAX_KIND} are shown anywhere")
    if ":" in kind:
        return _load(kind, kind)
    known = registry if registry is not None else builtin_registry()
    if registry is None and kind not in known:
        known = default_registry()
    if kind not in known:
        hint = suggest(kind, known) or f" - known: {', '.join(sorted(known))}"
        raise KindError(f"unknown kind {kind!r}{hint}")
    found = known[kind]
    return found if isinstance(found, type) else _load(kind, found)


def gives_all(kind: str, given: object, registry: Registry | None = None) -> bool:
    """Whether there is such a kind, and `given` has every key that it cannot do without.

    Of what trains the model there is one in a run: another one does not come by a single key.
    """
    try:
        found = service_class(kind, registry)
    except KindError:
        return False
    needed = {name for name, info in found.model_fields.items() if info.is_required()}
    return isinstance(given, dict) and needed <= given.keys() and not found.trains


@cache
def part_of(kind: str) -> str:
    """The built-in kind whose part a service of this kind takes, often itself. Raises KindError."""
    return service_class(kind).plays or kind


def _load(kind: str, path: str) -> type[ServiceSpec]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise KindError(f"kind {kind!r}: cannot load {path!r}: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ServiceSpec)):
        raise KindError(f"kind {kind!r}: {path!r} is not a subclass of midflight.kernel.spec.ServiceSpec")
    return found
