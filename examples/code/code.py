"""Code: sums too long for a small head; the model writes Python, the sandbox runs it, the model reads the output.

    python examples/code/code.py examples/code     # writes train, eval and sft rows (JSON lines)
    midflight up examples/code/code.yaml

What the model writes runs in a child process of the reward worker, inside its sandbox: no network, no files but the
interpreter's, an end after two seconds. `midflight ps` shows which sandbox is in force.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LIMIT_S = 2.0


def interact(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """What the program after `py ` prints, or the last line of its complaint; none when there is no program."""
    said = messages[-1]["content"]
    if not said.startswith("py "):
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", said[3:]], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [{"role": "tool", "content": "too slow"}]
    output = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2] or "nothing"
    return [{"role": "tool", "content": output[:24]}]


def reward_fn(messages: list[dict[str, str]], answer: str) -> float:
    """1 for exactly the right number."""
    return float(messages[-1]["content"].strip() == answer)


def draw(rng: random.Random) -> tuple[str, str]:
    """An expression of three numbers, and its value."""
    a, b, c = (rng.randint(10, 99) for _ in range(3))
    return f"{a}*{b}+{c}", str(a * b + c)


def rows(split: str, count: int) -> Iterator[dict[str, object]]:
    """Prompts with their answer; for `sft` whole conversations, half of which run the wrong program."""
    rng = random.Random(f"code/{split}")
    for _ in range(count):
        asked, truth = draw(rng)
        prompt = {"role": "user", "content": asked}
        if split != "sft":
            yield {"messages": [prompt], "answer": truth}
            continue
        written = asked if rng.random() < 0.5 else asked[:-1] + str(rng.randint(0, 9))
        a, _, rest = written.partition("*")
        b, _, c = rest.partition("+")
        printed = str(int(a) * int(b) + int(c))
        yield {"messages": [
            prompt,
            {"role": "assistant", "content": f"py print({written})"},
            {"role": "tool", "content": printed},
            {"role": "assistant", "content": printed},
        ]}  # fmt: skip


if __name__ == "__main__":
    for name, count in (("train", 4096), ("eval", 512), ("sft", 25600)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(name, count))
        (Path(sys.argv[1]) / f"{name}.jsonl").write_text(lines)
