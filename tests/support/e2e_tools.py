"""Tools that answer whatever the model says, twice an episode, and write down every call they were asked for."""

import time
from pathlib import Path

CALLS = Path(__file__).with_suffix(".calls")


def interact(messages: list[dict[str, str]], state: dict[str, int], call: str) -> list[dict[str, str]]:
    turns = sum(message["role"] == "assistant" for message in messages)
    with CALLS.open("a") as calls:
        calls.write(f"{call} {turns} {state.get('seen', 0)} {messages[-1]['role']}\n")
    time.sleep(0.005)
    state["seen"] = state.get("seen", 0) + 1
    return [{"role": "tool", "content": f"{call}!"}] if turns < 3 else []


def reward_fn(messages: list[dict[str, str]], answer: str, state: dict[str, int]) -> float:
    text = "".join(message["content"] for message in messages if message["role"] == "assistant")
    return sum(letter in "abcdefghij" for letter in text) / 16 + len(text) / 1000 + float(state.get("seen", 0))
