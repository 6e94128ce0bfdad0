"""The reward of `e2e_reward`, 15 ms a call: steps last long enough to be interrupted between two of them."""

import time


def reward_fn(messages: list[dict[str, str]], answer: str) -> float:
    time.sleep(0.015)
    text = messages[-1]["content"]
    return sum(letter in "abcdefghij" for letter in text) / 16 + float(text == answer)
