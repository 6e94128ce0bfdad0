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
BAND: Final = 6
"""Lines that samples under each other have at least, their heading and a gap among them."""
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
        str(len(sample.tokens)), str(sample.lag), versions(sample), ending(sample),
    )  # fmt: skip


def ending(sample: Sample) -> str:
    """How it ended, and after how many turns if there were several."""
    return plain(f"{sample.turns} turns, {sample.finish}" if sample.turns > 1 else sample.finish)


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


def side_by_side(group: Group, chosen: int, width: int, height: int) -> list[Text]:
    """The group's answers as columns, in as many bands as the height has room for; the chosen one among them."""
    samples = group.samples
    at = next((i for i, sample in enumerate(samples) if sample.id == chosen), 0)
    lines = _group_head(group, width)
    fit = max(1, min(MOST, width // 24, len(samples)))
    bands = max(1, min(-(-len(samples) // fit), (height - len(lines)) // BAND))
    many = min(fit * bands, len(samples))
    fit = max(1, -(-many // bands))
    begin = max(0, min(at - many // 2, len(samples) - many))
    told = f"{many} of {len(samples)} samples" if many < len(samples) else f"{len(samples)} samples"
    rewards = [sample.reward for sample in samples]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    told = f"prompt {group.prompt_id}, {told}, rewards {number(min(rewards, default=0.0))} to "
    heading = Text(f"{told}{number(max(rewards, default=0.0))}, mean {number(mean, 3)}", "bold")
    column = max(12, (width - (fit - 1) * 3) // fit)
    share = (height - len(lines)) // bands - 2 if bands > 1 else 0
    for first in range(begin, begin + many, fit):
        lines += [Text(), *_band(samples[first : min(first + fit, begin + many)], chosen, column, share)]
    return [heading, *lines[1:]]


def _group_head(group: Group, width: int) -> list[Text]:
    """Room for the heading, and the prompt."""
    return [Text(), *(Text(f"  {line}", "dim") for line in wrap(group.prompt, width - 2)[:4])]


def _band(samples: Sequence[Sample], chosen: int, column: int, most: int) -> list[Text]:
    """Some samples beside each other, each in at most so many lines under its heading; 0: in all of them."""
    cells = [_cut(wrap(sample.text, column), most) for sample in samples]
    lines = [Text(" | ").join(_head(sample, column, sample.id == chosen) for sample in samples)]
    for row in range(max(map(len, cells), default=0)):
        parts = [Text(f"{cell[row] if row < len(cell) else '':<{column}}") for cell in cells]
        lines.append(Text(" | ").join(parts))
    return lines


def _cut(lines: list[str], most: int) -> list[str]:
    if not most or len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"(+{len(lines) - most + 1} lines)"]


def _head(sample: Sample, column: int, chosen: bool) -> Text:
    style = "green" if sample.advantage_mean > 0 else "red" if sample.advantage_mean < 0 else "dim"
    told = f"{sample.id}: {number(sample.reward, 3)} ({sample.advantage_mean:+.2f})"[:column]
    return Text(f"{told:<{column}}", f"reverse {style}" if chosen else style)
