"""A reward that differs between any two policies: the share of letters of the answer's alphabet in the response."""


def reward_fn(messages: list[dict[str, str]], answer: str) -> float:
    text = messages[-1]["content"]
    return sum(letter in "abcdefghij" for letter in text) / 16 + float(text == answer)
