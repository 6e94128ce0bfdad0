"""The built-in task of several turns: questions that only tools can answer.

    value of ka?     <tool_call>get ka</tool_call>      -> 57       57
    41 plus 23?      <tool_call>add 41 23</tool_call>   -> 64       64
    ka plus 23?      get ka -> 57, add 57 23 -> 80                  80

Every question has a table of its own, which the model never sees, so that `get` cannot be learned by heart. The row's
answer is {value, table}; the tools themselves are the reward file's.
"""

import random
import string
from dataclasses import dataclass

KEYS = tuple(first + second for first in "abcdefgh" for second in "xyz")
LETTERS = "abcdefghxyz"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, what the tools know, and the calls that lead to the answer."""

    text: str
    table: dict[str, int]
    calls: tuple[str, ...]
    value: str


def question(rng: random.Random) -> Question:
    """Draw one: a value, a sum, or a sum with a value in it."""
    table = {key: rng.randrange(10, 100) for key in KEYS}
    key, one, other = rng.choice(KEYS), rng.randrange(10, 100), rng.randrange(10, 100)
    kind = rng.choice(("get", "add", "both"))
    if kind == "get":
        return Question(f"value of {key}?", table, (f"get {key}",), str(table[key]))
    if kind == "add":
        return Question(f"{one} plus {other}?", table, (f"add {one} {other}",), str(one + other))
    value = table[key]
    return Question(f"{key} plus {other}?", table, (f"get {key}", f"add {value} {other}"), str(value + other))


def demonstration(asked: Question, rng: random.Random, noise: float) -> list[dict[str, str]]:
    """The conversation that answers a question; a share `noise` of them is wrong in one of three ways.

    The demonstrator guesses without a tool, mistypes the last call, or misreports the result.
    """
    wrong = rng.choice(("guess", "call", "report")) if rng.random() < noise else ""
    messages = [_say("user", asked.text)]
    if wrong == "guess":
        return [*messages, _say("assistant", str(rng.randrange(10, 200)))]
    result = ""
    for number, call in enumerate(asked.calls, 1):
        made = mistyped(call, rng) if wrong == "call" and number == len(asked.calls) else call
        result = respond(asked.table, made)
        messages += [_say("assistant", f"<tool_call>{made}</tool_call>"), _say("tool", result)]
    return [*messages, _say("assistant", misreported(result, rng) if wrong == "report" else result)]


def respond(table: dict[str, int], call: str) -> str:
    """What the tools say to a call, `error` to what they do not understand."""
    match call.split(" "):
        case ["get", key]:
            return str(table.get(key, "error"))
        case ["add", one, other] if one.isdecimal() and other.isdecimal():
            return str(int(one) + int(other))
    return "error"


def mistyped(call: str, rng: random.Random) -> str:
    """A call with one character of its arguments replaced by one of the same kind."""
    name, _, arguments = call.partition(" ")
    place = rng.choice([at for at, char in enumerate(arguments) if char != " "])
    return f"{name} {_replaced(arguments, place, rng)}"


def misreported(result: str, rng: random.Random) -> str:
    """A result with one character replaced by one of the same kind."""
    return _replaced(result, rng.randrange(len(result)), rng)


def _replaced(text: str, place: int, rng: random.Random) -> str:
    kind = string.digits if text[place].isdecimal() else LETTERS
    other = rng.choice([char for char in kind if char != text[place]])
    return f"{text[:place]}{other}{text[place + 1 :]}"


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
