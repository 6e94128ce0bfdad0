"""Three named rewards that differ between any two policies, 15 ms a call; see `e2e_slow_reward`."""

import time


def reward_fn(messages: list[dict[str, str]], answer: str) -> dict[str, float]:
    time.sleep(0.015)
    text = messages[-1]["content"]
    letters = sum(letter in "abcdefghij" for letter in text) / 16
    return {"exact": float(text == answer), "prefix": letters, "length": -abs(len(text) - len(answer)) / 16}
