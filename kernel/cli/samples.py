"""midflight samples: what the policy wrote, how it was rewarded, what each token did. Also for runs that are over."""

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace

from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.sample_files import COLUMNS, Group, Sample, StepSamples, list_steps, read_step

from .common import chosen_run, print_json, printable, run_option, table
from .exits import FAILED, NO_RUN, OK, Stop

INDENT = "    "


def options(parser: argparse.ArgumentParser) -> None:
    """Which step, which sample, how much of it."""
    run_option(parser)
    parser.add_argument("--step", type=int, metavar="N", help="a training step; default the newest that has samples")
    parser.add_argument("--id", type=int, metavar="ID", help="only this sample")
    parser.add_argument("--tokens", action="store_true", help="a table of every token and its numbers")


def run(arguments: argparse.Namespace) -> int:
    """Read the run's folder; nothing is asked of the run."""
    folder = chosen_run(arguments, live=False)
    steps = list_steps(folder.path)
    if not steps:
        raise Stop(NO_RUN, f"{folder.path}: no samples are kept here (learner.samples.groups)")
    chosen = _chosen(folder, steps, arguments.step, arguments.id)
    if arguments.json:
        print_json(asdict(chosen))
        return OK
    kept = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])
    print(f"step {chosen.step}, policy version {chosen.version}; samples are kept of {len(steps)} steps, {kept}")
    for group in chosen.groups:
        print("\n".join(_shown(group, arguments.tokens)))
    return OK


def _chosen(folder: RunDir, steps: list[int], step: int | None, sample: int | None) -> StepSamples:
    """The samples of a step, or the one sample, in the newest step that has it."""
    if step is not None and step not in steps:
        near = min(steps, key=lambda known: abs(known - step))
        raise Stop(FAILED, f"no samples of step {step} are kept; the nearest is step {near}")
    if sample is None:
        return read_step(folder.path, steps[-1] if step is None else step)
    for number in reversed(steps) if step is None else [step]:
        found = read_step(folder.path, number)
        for group in found.groups:
            own = [one for one in group.samples if one.id == sample]
            if own:
                return replace(found, groups=[replace(group, samples=own)])
    where = "any step" if step is None else f"step {step}"
    raise Stop(FAILED, f"sample {sample} is not among those kept of {where}")


def _shown(group: Group, tokens: bool) -> Iterator[str]:
    rewards = [sample.reward for sample in group.samples]
    spread = f"{min(rewards):.4g} to {max(rewards):.4g}, mean {sum(rewards) / len(rewards):.4g}"
    yield f"\nprompt {group.prompt_id}, {len(rewards)} samples, reward {spread}"
    yield _block(group.prompt)
    for sample in group.samples:
        yield from _sample(sample, tokens)


def _sample(sample: Sample, tokens: bool) -> Iterator[str]:
    named = " ".join(f"{name}={value:.4g}" for name, value in sample.rewards.items())
    parts = [
        f"sample {sample.id}",
        f"reward {sample.reward:.4g}" + (f" ({named})" if named else ""),
        f"advantage {sample.advantage_mean:+.4g}",
        f"{sample.turns} turns, {sample.finish}" if sample.turns > 1 else sample.finish,
        f"lag {sample.lag}",
        f"{len(sample.tokens)} tokens",
    ]
    yield f"  {', '.join(parts)}" + (f", answer {printable(sample.answer)!r}" if sample.answer else "")
    if sample.turns == 1:
        yield _block(sample.text)
    for own, text in sample.spoken() if sample.turns > 1 else ():
        yield f"{INDENT}{'wrote' if own else 'was told'}:"
        yield textwrap.indent(_block(text.strip("\n")), INDENT)
    if tokens and sample.tokens:
        yield textwrap.indent(_token_table(sample), INDENT)


def _token_table(sample: Sample) -> str:
    known = [name for name in COLUMNS if name in sample.columns]
    names = known + [name for name in sample.columns if name not in known]
    rows = [["#", "TOKEN", *(name.upper() for name in names)]]
    for at, token in enumerate(sample.tokens):
        rows.append([str(at), repr(token), *(_number(sample.columns[name][at]) for name in names)])
    return table(rows)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4f}"


def _block(text: str) -> str:
    """Text of others, indented, its lines kept and its control characters shown."""
    return textwrap.indent("\n".join(printable(line) for line in text.split("\n")), INDENT, lambda _: True)
