"""The tools of `task:tools`, and reward 1 for exactly the expected value."""

from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def interact(messages: list[dict[str, str]], answer: dict[str, Any]) -> list[dict[str, str]]:
    """Answer a call: `get KEY` looks into the question's table, `add A B` adds. No call, no answer."""
    said = messages[-1]["content"]
    if not (said.startswith(OPEN) and said.endswith(CLOSE) and said.count(OPEN) == 1):
        return []
    return [{"role": "tool", "content": respond(answer["table"], said[len(OPEN) : -len(CLOSE)])}]


def respond(table: dict[str, int], call: str) -> str:
    """The value, the sum, or `error`."""
    match call.split(" "):
        case ["get", key]:
            return str(table.get(key, "error"))
        case ["add", one, other] if one.isdecimal() and other.isdecimal():
            return str(int(one) + int(other))
    return "error"


def reward_fn(messages: list[dict[str, str]], answer: dict[str, Any]) -> float:
    """Compare the last message with the value, character by character."""
    return float(messages[-1]["role"] == "assistant" and messages[-1]["content"] == answer["value"])
