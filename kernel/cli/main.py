"""midflight: launch, watch and steer runs. `midflight VERB --help` tells each verb's options."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

from .exits import FAILED, INTERRUPTED, NO_RUN, USAGE, Stop

VERBS: Final = {
    "up": "start a run from a topology file, or go on with one (--resume)",
    "join": "run this host's ranks of a learner that is spread over several hosts",
    "down": "end a run: drain and checkpoint, or --now",
    "ps": "what every service of a run is doing, and what it waits for",
    "logs": "the services' logs, merged by time",
    "set": "change a knob: midflight set optim.lr=3e-4 --reason plateau",
    "get": "show knobs, their bounds and owners",
    "swap": "replace what runs in a slot, without a gap: midflight swap kl --with pid.yaml",
    "ctl": "controllers: ls, show, attach, compare, promote, rollback, detach, lock, unlock",
    "replay": "the journal of a run through its controllers again, or through another one",
    "service": "pause, resume, drain, restart, kill or scale services",
    "ledger": "the balance of all samples, or one sample's life; fails if it does not balance",
    "history": "what was changed, when, by whom and why; also of a run that is over",
    "metrics": "what was measured, step by step: midflight metrics reward_mean kl --follow",
    "wait": "return when a run has come so far: --for step=100, ready, done or drained",
    "rows": "prompt rows of an environment of verifiers or OpenEnv, as JSON lines",
    "samples": "samples of a training step, token by token: text, rewards, log-probs",
    "models": "checkpoints: ls, verify, and export as a Hugging Face folder",
    "tui": "the run on seven screens; read-only until armed",
    "plan": "memory and traffic that a topology needs, from shapes alone; refuses what cannot fit",
    "config": "check, show (--origin), explain or schema of topologies",
    "doctor": "is this machine fit to run midflight?",
}
"""verb -> one line of help; the verb's module of the same name has `options(parser)` and `run(arguments)`."""

MODULES: Final = {"set": "set_knob", "get": "get_knobs"}
"""Modules whose name is not their verb's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; -> its exit code (see `exits`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="midflight", description=__doc__)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text in VERBS.items():
        one = verbs.add_parser(verb, help=text, description=text, allow_abbrev=False)
        if arguments[:1] == [verb]:
            _module(verb).options(one)
    chosen, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in chosen or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes positionals in one piece only; key=value may stand after options too
        chosen.overrides += rest
    if chosen.version:
        from midflight import __version__

        print(__version__)
        return 0
    if not chosen.verb:
        parser.print_help(sys.stderr)
        return USAGE
    return _run(chosen)


def _module(verb: str):  # type: ignore[no-untyped-def]
    return import_module(f".{MODULES.get(verb, verb)}", __package__)


def _run(chosen: argparse.Namespace) -> int:
    from midflight.kernel.client import Unreachable
    from midflight.kernel.mistake import UserMistake
    from midflight.kernel.rundir.errors import RunDirError, RunNotFound

    try:
        code: int = _module(chosen.verb).run(chosen)
        return code
    except Stop as stop:
        print(f"midflight {chosen.verb}: {stop}", file=sys.stderr)
        return stop.code
    except (Unreachable, RunNotFound) as error:
        print(f"midflight {chosen.verb}: {error}", file=sys.stderr)
        return NO_RUN
    except RunDirError as error:
        print(f"midflight {chosen.verb}: {error}", file=sys.stderr)
        return USAGE
    except UserMistake as error:
        print(f"midflight {chosen.verb}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"midflight {chosen.verb}: {error}", file=sys.stderr)
        return FAILED


def entry() -> NoReturn:
    """The console script. Taking the interpreter down would cost `midflight ps` another third of its CPU time."""
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
