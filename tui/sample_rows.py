"""Samples as rows of a table, and a group side by side."""

from collections.abc import Callable, Sequence
from typing import Final

from rich.text import Text

from midflight.kernel.sample_files import Group, Sample

from .turns import wrap
from .widgets.table import Row
from .words import number, plain

COLUMNS = ("GROUP", "SAMPLE", "REWARD", "ADV", "LEN", "LAG", "VERS", "END")
NARROW = ("SAMPLE", "REWARD", "LEN")
SORTS: Final = ("group", "reward", "length", "advantage", "lag")
MOST: Final = 6
"""Samples side by side."""
_KEYS: Final[dict[str, Callable[[Sample], float]]] = {
    "reward": lambda sample: -sample.reward,
    "length": lambda sample: -len(sample.tokens),
    "advantage": lambda sample: -sample.advantage_mean,
    "lag": lambda sample: -sample.lag,
}


def sorted_samples(pairs: Sequence[tuple[Group, Sample]], by: str) -> list[tuple[Group, Sample]]:
    """As written, or the greatest first."""
    key = _KEYS.get(by)
    return sorted(pairs, key=lambda pair: key(pair[1])) if key else list(pairs)


def sample_row(group: Group, sample: Sample, narrow: bool) -> Row:
    """Key and cells."""
    style = "green" if sample.advantage_mean > 0 else "red" if sample.advantage_mean < 0 else "dim"
    reward = Text(number(sample.reward, 3), style)
    if narrow:
        return str(sample.id), (str(sample.id), reward, str(len(sample.tokens)))
    return str(sample.id), (
        str(group.prompt_id), str(sample.id), reward, Text(f"{sample.advantage_mean:+.2f}", style),
        str(len(sample.tokens)), str(sample.lag), versions(sample), plain(sample.finish),
    )  # fmt: skip


def versions(sample: Sample) -> str:
    """Which policy versions wrote it: v41, or v40-41."""
    known = [value for value in sample.columns.get("version", ()) if value >= 0]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"v{low:.0f}" if low == high else f"v{low:.0f}-{high:.0f}"


def found_at(steps: Sequence[int], step: int) -> str:
    """3 of 40."""
    return f"{steps.index(step) + 1} of {len(steps)}" if step in steps else f"of {len(steps)}"


def side_by_side(group: Group, chosen: int, width: int) -> list[Text]:
    """The group's answers as columns, the chosen one among them."""
    samples = group.samples
    at = next((i for i, sample in enumerate(samples) if sample.id == chosen), 0)
    fit = max(1, min(MOST, width // 24, len(samples)))
    begin = max(0, min(at - fit // 2, len(samples) - fit))
    shown = samples[begin : begin + fit]
    column = max(12, (width - (fit - 1) * 3) // max(1, fit))
    cells = [wrap(sample.text, column) for sample in shown]
    rewards = [sample.reward for sample in samples]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    told = f"prompt {group.prompt_id}, {len(samples)} samples, rewards {number(min(rewards, default=0.0))} to "
    lines = [Text(f"{told}{number(max(rewards, default=0.0))}, mean {number(mean, 3)}", "bold")]
    lines += [Text(f"  {line}", "dim") for line in wrap(group.prompt, width - 2)[:4]]
    lines.append(Text())
    heads = [_head(sample, column, sample.id == chosen) for sample in shown]
    lines.append(Text(" | ").join(heads))
    for row in range(max(map(len, cells), default=0)):
        parts = [Text(f"{cell[row] if row < len(cell) else '':<{column}}") for cell in cells]
        lines.append(Text(" | ").join(parts))
    return lines


def _head(sample: Sample, column: int, chosen: bool) -> Text:
    style = "green" if sample.advantage_mean > 0 else "red" if sample.advantage_mean < 0 else "dim"
    told = f"{sample.id}: {number(sample.reward, 3)} ({sample.advantage_mean:+.2f})"[:column]
    return Text(f"{told:<{column}}", f"reverse {style}" if chosen else style)
