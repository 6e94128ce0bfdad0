"""Environments of other libraries in a reward file's place: `ADAPTER:NAME`, written out as the file a worker imports.

An adapter is a function `load(name, arguments)`. What it returns has

    reward_fn(messages, answer, ...), interact(messages, ...)    as a reward file defines them
    rows(count)                                                  yields prompt rows, for `midflight rows`

The two that come with midflight are read as source, for a worker has nothing of ours on its path; they and the
libraries they adapt are imported there alone. Other packages add adapters by entry points of the group
`midflight.environments`: name = adapter, value = `package.module:load`.
"""

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUP = "midflight.environments"
BUILT_IN = {"verifiers": "verifiers_v1.py", "openenv": "openenv_local.py"}
"""Adapter -> its file. What it needs has the same name: the package, and the extra of midflight."""


def check(environment: str) -> None:
    """Say what stands in the way of an environment, without importing it.

    Raises:
        ValueError: no `ADAPTER:NAME`, an adapter that nobody provides, or its package is not installed.
    """
    adapter, colon, name = environment.partition(":")
    if not (adapter and colon and name):
        raise ValueError(f"{environment!r} names no environment: want ADAPTER:NAME, such as verifiers:my-tasks")
    known = sorted({*BUILT_IN, *_outside()})
    if adapter not in known:
        raise ValueError(f"no adapter {adapter!r} for environments; there are: {', '.join(known)}")
    if adapter in BUILT_IN and importlib.util.find_spec(adapter) is None:
        raise ValueError(f"{environment}: {adapter} is not installed here - pip install 'midflight[{adapter}]'")


def reward_file(environment: str, arguments: Mapping[str, object]) -> str:
    """Return the source of the reward file that plays `environment`, made with `arguments` (JSON)."""
    check(environment)
    adapter, _, name = environment.partition(":")
    if adapter in BUILT_IN:
        source = Path(__file__).with_name(BUILT_IN[adapter]).read_text()
    else:
        module, _, function = _outside()[adapter].partition(":")
        source = f'"""{adapter}, an adapter from outside."""\nfrom {module} import {function} as load\n'
    made = f"_made = load({name!r}, __import__('json').loads({json.dumps(dict(arguments))!r}))\n"
    return f"{source}\n\n{made}reward_fn, interact, rows = _made.reward_fn, _made.interact, _made.rows\n"


def load(environment: str, arguments: Mapping[str, object]) -> Any:
    """Make the environment in this process, with no sandbox around it. Raises ValueError, and whatever it raises."""
    check(environment)
    adapter, _, name = environment.partition(":")
    built_in = BUILT_IN.get(adapter)
    module, _, function = (f"{__name__}.{built_in[:-3]}:load" if built_in else _outside()[adapter]).partition(":")
    return getattr(importlib.import_module(module), function)(name, dict(arguments))


def _outside() -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
