"""docs/cli.md: every verb and option, from the argument parsers themselves."""

import argparse
import inspect
from importlib import import_module

from midflight.kernel.cli import exits
from midflight.kernel.cli.main import MODULES, VERBS

from .markdown import NOTICE, code, table

INTRO = """# Command line

`midflight VERB`. A verb finds its run by `--run NAME|DIR`, else by `$MIDFLIGHT_RUN`, else it takes the newest live run
under `./runs` (verbs that only read also take one that is over). Data go to stdout, talk to stderr; `--json` gives one
object on one line.
"""

EXITS = {
    "OK": "done",
    "FAILED": "a run or service failed; the ledger does not balance; a checkpoint is damaged; the machine is not fit; "
    "a plan does not fit",
    "USAGE": "wrong arguments; a topology, data, a reward file, a model or a run directory that cannot be used",
    "NO_RUN": "no such run, or its kernel does not answer",
    "REFUSED": "refused by a guard: range, owner, epoch",
    "TIMED_OUT": "still waiting when the time was over",
    "STALE": "the knob is no longer at the version given by `--if-version`",
    "INTERRUPTED": "Ctrl-C, SIGTERM or the end of the terminal, also when everything was finished and saved in time",
}


def page() -> str:
    """The whole page."""
    rows = [[str(getattr(exits, name)), text] for name, text in EXITS.items()]
    parts = [NOTICE, INTRO, "## Exit codes\n", table(["code", "meaning"], rows)]
    for verb, text in VERBS.items():
        module = import_module(f"midflight.kernel.cli.{MODULES.get(verb, verb)}")
        parser = argparse.ArgumentParser(prog=f"midflight {verb}")
        module.options(parser)
        about = (inspect.getdoc(module) or "").partition("\n")[2].strip()
        parts += [f"## midflight {verb}\n", _sentence(text)]
        parts += [f"{about}\n"] if about else []
        parts += _arguments(parser)
    return "\n".join(parts)


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    """Tables of a parser and of the parsers below it."""
    rows: list[list[str]] = []
    below: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                below += [f"### {parser.prog} {choice.dest}\n", _sentence(str(choice.help))]
                below += _arguments(action.choices[choice.dest])
        elif not isinstance(action, argparse._HelpAction):
            rows.append([code(_spelling(action)), action.help or "-"])
    return ([table(["argument", "meaning"], rows)] if rows else []) + below


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('?') else '.'}\n"


def _spelling(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        many = {"*": f"[{name} ...]", "?": f"[{name}]"}
        return many.get(str(action.nargs), name)
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {name}"
