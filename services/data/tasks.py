"""Built-in synthetic tasks with a verifiable answer, small enough for two cores.

    rev6-10     rev abcdef        -> fedcba       reverse 6 to 10 letters
    sort6-10    sort 40215        -> 01245        sort 6 to 10 digits
    rep12       say c 4 times     -> cccc         repeat a letter 1 to 12 times
    tools       ka plus 23?       -> 80           ask tools, one or two of them (see `tools`; no preferences)

Prompts are independent draws. `split` and `seed` choose the stream: `train` and `eval` never share one. rev6-10 and
sort6-10 hardly ever repeat a prompt; rep12 has only 120 different ones, so its eval prompts are not new.

Demonstrations can be noisy: with probability `noise` one or two characters of an SFT response are replaced by others
of the same kind. RL then has something to unlearn; much of the gain on these tasks is the removal of that noise.
"""

import difflib
import json
import random
import string
from array import array
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl

from . import tools
from .raw import DataError, RawRow

LETTERS = "abcdefghij"
PREFIX = "task:"
Task = Callable[[random.Random], tuple[str, str]]
"""Draws one (prompt, answer)."""


def reverse(rng: random.Random) -> tuple[str, str]:
    """Reverse 6 to 10 letters."""
    word = "".join(rng.choices(LETTERS, k=rng.randint(6, 10)))
    return f"rev {word}", word[::-1]


def sort(rng: random.Random) -> tuple[str, str]:
    """Sort 6 to 10 digits."""
    digits = rng.choices(string.digits, k=rng.randint(6, 10))
    return f"sort {''.join(digits)}", "".join(sorted(digits))


def repeat(rng: random.Random) -> tuple[str, str]:
    """Repeat one letter 1 to 12 times."""
    letter, times = rng.choice(LETTERS), rng.randint(1, 12)
    return f"say {letter} {times} times", letter * times


TASKS: dict[str, Task] = {"rev6-10": reverse, "sort6-10": sort, "rep12": repeat}
"""Name -> task."""
TOOLS = "tools"
"""The one of several turns."""


def corrupt(answer: str, rng: random.Random) -> str:
    """Replace one or two characters of `answer` by others of the same kind (digit or letter)."""
    letters = list(answer)
    for place in rng.sample(range(len(letters)), min(rng.randint(1, 2), len(letters))):
        kind = string.digits if letters[place].isdigit() else LETTERS
        letters[place] = rng.choice([letter for letter in kind if letter != letters[place]])
    return "".join(letters)


def prompt_rows(task: str, split: str, count: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield `count` rows {messages: [user], answer}."""
    for prompt, answer, _ in _draws(task, split, count, seed):
        yield {"messages": [_say("user", prompt)], "answer": answer}


def sft_rows(task: str, split: str, count: int, seed: int, noise: float) -> Iterator[dict[str, object]]:
    """Yield `count` rows {messages: [user, assistant]}; a share `noise` of the demonstrations is wrong."""
    for prompt, answer, rng in _draws(task, split, count, seed):
        said = corrupt(answer, rng) if rng.random() < noise else answer
        yield {"messages": [_say("user", prompt), _say("assistant", said)]}


def shuffle(answer: str, rng: random.Random) -> str:
    """Another order of the characters of `answer`, which is corrupted when there is none."""
    if len(set(answer)) == 1:
        return corrupt(answer, rng)
    letters = answer
    while letters == answer:
        letters = "".join(sorted(answer, key=lambda _: rng.random()))
    return letters


REJECTED: dict[str, Callable[[str, random.Random], str]] = {"corrupted": corrupt, "shuffled": shuffle}
"""How a right answer becomes the rejected one of a pair."""


def preference_rows(
    task: str, split: str, count: int, seed: int, rejected: str = "corrupted"
) -> Iterator[dict[str, object]]:
    """Yield `count` rows {messages: [user], chosen: the answer, rejected: the answer corrupted, or shuffled}."""
    for prompt, answer, rng in _draws(task, split, count, seed):
        yield {"messages": [_say("user", prompt)], "chosen": answer, "rejected": REJECTED[rejected](answer, rng)}


def read_task(source: str, kind: str) -> Iterator[RawRow]:
    """Yield the rows of `task:NAME?rows=4096&seed=1&noise=0.5&split=train`, as `kind` = prompt, sft or preference.

    Raises:
        DataError: an unknown task or option, or a value out of range.
    """
    name, options = task_options(source)
    count, seed, noise = int(options["rows"]), int(options["seed"]), float(options["noise"])
    place = (name, options["split"], count, seed)
    if name == TOOLS:
        yield from _tool_rows(source, kind, count, noise)
        return
    kinds = {
        "prompt": prompt_rows(*place),
        "sft": sft_rows(*place, noise),
        "preference": preference_rows(*place, options["rejected"]),
    }
    for number, fields in enumerate(kinds[kind], 1):
        yield RawRow(f"{PREFIX}{name}/{options['split']}:{number}", fields)


class TaskRows:
    """The same rows by number, kept as JSON: they are drawn one after another and cannot be had otherwise."""

    def __init__(self, source: str, kind: str) -> None:
        self._text, self._ends, self._name = bytearray(), array("Q", [0]), ""
        for row in read_task(source, kind):
            self._name = row.origin.rpartition(":")[0]
            self._text += json.dumps(row.fields).encode()
            self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int, /) -> RawRow:
        text = self._text[self._ends[number] : self._ends[number + 1]]
        return RawRow(f"{self._name}:{number + 1}", json.loads(text))


def task_options(source: str) -> tuple[str, dict[str, str]]:
    """(name, options) of a task source, complete and in range.

    Raises:
        DataError: an unknown task or option, or a value out of range.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    options: dict[str, str] = {
        "rows": "4096",
        "seed": "0",
        "noise": "0",
        "split": "train",
        "rejected": "corrupted",
    }
    if name not in (*TASKS, TOOLS):
        raise DataError(f"{source}: unknown task {name!r}{_hint(name, (*TASKS, TOOLS))}")
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options:
            raise DataError(f"{source}: unknown option {key!r}{_hint(key, options)}")
        options[key] = value
    try:
        count, noise = int(options["rows"]), float(options["noise"])
        int(options["seed"])
    except ValueError as error:
        raise DataError(f"{source}: rows and seed are whole numbers, noise is a number: {error}") from None
    if count < 1 or not 0 <= noise <= 1 or options["split"] not in ("train", "eval"):
        raise DataError(f"{source}: needs rows >= 1, 0 <= noise <= 1 and split=train or split=eval")
    if options["rejected"] not in REJECTED:
        raise DataError(f"{source}: rejected is one of {', '.join(REJECTED)}")
    return name, options


def _draws(task: str, split: str, count: int, seed: int) -> Iterator[tuple[str, str, random.Random]]:
    """Yield prompt, answer and a second generator for noise, so that noise never changes the prompts."""
    prompts, noise = (random.Random(f"{task}/{split}/{seed}/{use}") for use in ("prompts", "noise"))
    for _ in range(count):
        prompt, answer = TASKS[task](prompts)
        yield prompt, answer, noise


def _tool_rows(source: str, kind: str, count: int, noise: float) -> Iterator[RawRow]:
    """Questions {messages, answer: {value, table}}, or demonstrations {messages}. Raises DataError for preferences."""
    if kind == "preference":
        raise DataError(f"{source}: there are no preference pairs of this task")
    _, options = task_options(source)
    name = f"{TOOLS}/{options['split']}"
    questions, noises = (random.Random(f"{name}/{options['seed']}/{use}") for use in ("prompts", "noise"))
    for number in range(1, count + 1):
        asked = tools.question(questions)
        fields: dict[str, object] = {"messages": tools.demonstration(asked, noises, noise)}
        if kind == "prompt":
            answer = {"value": asked.value, "table": asked.table}
            fields = {"messages": [_say("user", asked.text)], "answer": answer}
        yield RawRow(f"{PREFIX}{name}:{number}", fields)


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" - did you mean {near[0]!r}?" if near else f" - there are {', '.join(known)}"
