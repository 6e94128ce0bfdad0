"""Countdown: reach a number with three others, each used once, by + - * and brackets.

    python examples/countdown/countdown.py examples/countdown     # writes train, eval and sft rows (JSON lines)
    midflight up examples/countdown/countdown.yaml

The reward reads the expression with `ast` and never runs what the model wrote.
"""

import ast
import json
import operator
import random
import sys
from collections.abc import Iterator
from pathlib import Path

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(node: ast.expr, used: list[int]) -> int:
    """What an expression comes to; the numbers in it are added to `used`. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return int(OPERATORS[type(node.op)](value(node.left, used), value(node.right, used)))
    raise ValueError("only whole numbers, + - * and brackets")


def reward_fn(messages: list[dict[str, str]], answer: str) -> dict[str, float]:
    """1 for an expression that uses just the given numbers and reaches the goal; a little for the right numbers."""
    *numbers, goal = map(int, answer.split())
    used: list[int] = []
    try:
        reached = value(ast.parse(messages[-1]["content"].strip()[:200], mode="eval").body, used)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"right": 0.0, "numbers": 0.0}
    fits = sorted(used) == sorted(numbers)
    return {"right": float(fits and reached == goal), "numbers": 0.1 * fits}


def draw(rng: random.Random) -> tuple[list[int], str, int]:
    """Three numbers, an expression of them, and what it comes to."""
    numbers = [rng.randint(1, 9) for _ in range(3)]
    first, second = rng.choices("+-*", k=2)
    said = f"{numbers[0]}{first}{numbers[1]}{second}{numbers[2]}"
    return numbers, said, value(ast.parse(said, mode="eval").body, [])


def rows(split: str, count: int) -> Iterator[dict[str, object]]:
    """Prompts with their answer; for `sft` demonstrations, half of which end in a wrong digit."""
    rng = random.Random(f"countdown/{split}")
    for _ in range(count):
        numbers, said, goal = draw(rng)
        shown = sorted(numbers)
        prompt = {"role": "user", "content": f"{' '.join(map(str, shown))} = {goal}"}
        if split == "sft":
            said = said[:-1] + str(rng.randint(1, 9)) if rng.random() < 0.5 else said
            yield {"messages": [prompt, {"role": "assistant", "content": said}]}
        else:
            yield {"messages": [prompt], "answer": f"{' '.join(map(str, shown))} {goal}"}


if __name__ == "__main__":
    for name, count in (("train", 4096), ("eval", 512), ("sft", 25600)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(name, count))
        (Path(sys.argv[1]) / f"{name}.jsonl").write_text(lines)
