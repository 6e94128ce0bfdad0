"""`midflight tui`: which run, how it is shown, in this terminal or in a browser; the kernel loads it by name."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from midflight.kernel.cli.exits import USAGE, Stop
from midflight.kernel.rundir import RunDir, find_run

from .facts import About, Feed
from .finished import FileFeed
from .live import LiveFeed


def options(parser: argparse.ArgumentParser) -> None:
    """The run, and how to look at it."""
    parser.add_argument("--run", metavar="NAME|DIR", help="which run; default $MIDFLIGHT_RUN, then the newest")
    power = parser.add_mutually_exclusive_group()
    power.add_argument("--write", action="store_true", help="armed from the start; without it `w` arms for 5 minutes")
    power.add_argument("--read-only", action="store_true", help="cannot be armed at all")
    parser.add_argument("--theme", default="", help="a Textual theme, e.g. nord, gruvbox, ansi-dark")
    parser.add_argument("--web", action="store_true", help="serve it to a browser on this machine instead")
    parser.add_argument("--port", type=int, default=8422, help="for --web (default 8422)")


def run(arguments: argparse.Namespace) -> int:
    """Show the run until the person leaves."""
    folder = find_run(arguments.run, live=False)
    if arguments.web:
        from .web import serve

        return serve(folder.path, arguments.port, arguments.write, arguments.theme)
    from .app import MidflightApp, Options, binding_ids
    from .keys import keymap_path, load_keymap

    keymap = load_keymap(keymap_path(os.environ), binding_ids())
    app = MidflightApp(feed_of(folder), Options(arguments.write, arguments.theme, arguments.read_only, keymap=keymap))
    if arguments.theme and arguments.theme not in app.available_themes:
        raise Stop(USAGE, f"no theme {arguments.theme!r}; there are: {', '.join(sorted(app.available_themes))}")
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        raise Stop(USAGE, "this is no terminal; --web shows the run in a browser")
    app.run()
    return app.return_code or 0


def feed_of(run: RunDir) -> Feed:
    """The living run, or the files of one that is over."""
    live = run.is_live() and run.info() is not None
    about = About(run.path, _name(run), _json(run.config_json), _json(run.origins_json), live, run.logs)
    return LiveFeed(about) if live else FileFeed(about)


def _name(run: RunDir) -> str:
    info = run.info()
    return info.run_id if info else run.path.name


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
