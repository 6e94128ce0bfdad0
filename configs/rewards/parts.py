"""Three objectives of one answer: exact, how far it is right, and how far its length is off (0 at best)."""


def reward_fn(messages: list[dict[str, str]], answer: str) -> dict[str, float]:
    """Named rewards; `learner.objective_weights`, or a controller of kind objectives, says how much each counts."""
    text = messages[-1]["content"]
    right = next((n for n, (a, b) in enumerate(zip(text, answer, strict=False)) if a != b), min(len(text), len(answer)))
    return {
        "exact": float(text == answer),
        "prefix": right / len(answer),
        "length": -abs(len(text) - len(answer)) / len(answer),
    }
