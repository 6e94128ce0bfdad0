"""midflight config check|show|explain|schema: topologies without starting anything."""

import argparse
import json
from dataclasses import asdict

from midflight.kernel.config import ConfigError, explain, load_topology, topology_schema

from .common import print_json, table
from .exits import USAGE, Stop
from .up import find_topology, mistakes


def options(parser: argparse.ArgumentParser) -> None:
    """One of four actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("check", "is this topology valid?"), ("show", "the resolved topology")):
        one = actions.add_parser(name, help=text, allow_abbrev=False)
        one.add_argument("topology", help="a file, or the name of one that comes with midflight, such as demo")
        one.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. services.learner.steps=50")
        one.add_argument(
            "-f", "--file", action="append", default=[], metavar="OVERLAY", help="merged over the topology"
        )
        one.add_argument("--json", action="store_true", help="one JSON object on stdout")
        if name == "show":
            one.add_argument("--origin", action="store_true", help="where each value was written")
    actions.add_parser("schema", help="the JSON schema of topologies")
    actions.add_parser("explain", help="what a key means").add_argument("key", help="e.g. services.learner.clip")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.action == "schema":
        print(json.dumps(topology_schema(), indent=1, sort_keys=True))
        return 0
    if arguments.action == "explain":
        try:
            print(explain(arguments.key))
        except (ConfigError, KeyError, ValueError) as error:
            raise Stop(USAGE, str(error)) from None
        return 0
    try:
        loaded = load_topology(find_topology(arguments.topology), arguments.file, arguments.overrides)
    except ConfigError as error:
        if arguments.json:
            print_json({"ok": False, "problems": error.problems})
            return USAGE
        raise Stop(USAGE, mistakes(error)) from None
    if arguments.action == "check":
        if arguments.json:
            print_json({"ok": True, "hash": loaded.hash})
        else:
            print(f"ok: {arguments.topology} ({len(loaded.topology.services)} services, hash {loaded.hash[:12]})")
    elif arguments.json:
        print_json([asdict(row) for row in loaded.rows()] if arguments.origin else loaded.data)
    elif arguments.origin:
        print(table([[row.origin, row.key, row.value] for row in loaded.rows()]))
    else:
        print("\n".join(f"{row.key}: {row.value}" for row in loaded.rows()))
    return 0
