"""Search: questions that need one or two look-ups in a local index.

    python examples/search/search.py examples/search     # writes train, eval and sft rows (JSON lines)
    midflight up examples/search/search.yaml

Who lives where is drawn anew for every question and lies in its `answer` field, so nothing can be learned by heart: the
model has to write `find WORD`, read what comes back, and answer. `interact` is the tool, `reward_fn` the judge.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = [a + b for a in ("Al", "Be", "Ci", "Do", "El", "Fa") for b in ("ra", "mo", "ni", "tu")]
TOWNS = [a + b for a in ("Ka", "Lo", "Mi", "Nu") for b in ("bar", "den", "fos")]
LANDS = ["Aria", "Boros", "Celan", "Durin", "Etla", "Foria"]


def interact(messages: list[dict[str, str]], answer: dict[str, list[str]]) -> list[dict[str, str]]:
    """The document that fits `find WORD` best; no message when nothing was asked for, which ends the episode."""
    said = messages[-1]["content"].split()
    if len(said) != 2 or said[0] != "find":
        return []
    found = best(answer["documents"], said[1])
    return [{"role": "tool", "content": found or "nothing"}]


def best(documents: list[str], word: str) -> str | None:
    """The document in which a word comes first; None when it is in none."""
    ranked = sorted((text.split().index(word), text) for text in documents if word in text.split())
    return ranked[0][1] if ranked else None


def reward_fn(messages: list[dict[str, str]], answer: dict[str, list[str]]) -> float:
    """1 for exactly the right word."""
    return float(messages[-1]["content"] == answer["truth"][0])


def draw(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """A question, the documents it is answered from, and the words a good answer goes through."""
    homes = {name: rng.choice(TOWNS) for name in rng.sample(NAMES, 6)}
    lands = {town: rng.choice(LANDS) for town in TOWNS}
    documents = [f"{name} in {town}" for name, town in homes.items()]
    documents += [f"{town} of {lands[town]}" for town in sorted(set(homes.values()))]
    name = rng.choice(sorted(homes))
    town = homes[name]
    if rng.random() < 0.7:
        return f"town {name}", documents, [name, town]
    return f"land {name}", documents, [name, town, lands[town]]


def rows(split: str, count: int) -> Iterator[dict[str, object]]:
    """Prompts with their documents; for `sft` whole conversations, half of which end in a wrong word."""
    rng = random.Random(f"search/{split}")
    for _ in range(count):
        question, documents, path = draw(rng)
        prompt = {"role": "user", "content": question}
        if split != "sft":
            yield {"messages": [prompt], "answer": {"documents": documents, "truth": [path[-1]]}}
            continue
        messages = [prompt]
        for word in path[:-1]:
            messages.append({"role": "assistant", "content": f"find {word}"})
            messages.append({"role": "tool", "content": best(documents, word) or "nothing"})
        last = path[-1] if rng.random() < 0.5 else rng.choice(TOWNS + LANDS)
        yield {"messages": [*messages, {"role": "assistant", "content": last}]}


if __name__ == "__main__":
    for name, count in (("train", 4096), ("eval", 512), ("sft", 25600)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(name, count))
        (Path(sys.argv[1]) / f"{name}.jsonl").write_text(lines)
