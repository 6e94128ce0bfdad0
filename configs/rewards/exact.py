"""Reward 1 for exactly the expected answer, else 0."""


def reward_fn(messages: list[dict[str, str]], answer: str) -> float:
    """Compare the last message with the answer, character by character."""
    return float(messages[-1]["content"] == answer)
