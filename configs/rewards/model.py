"""The score of a reward model, such as reward-model.yaml leaves: a transformers sequence classifier, on the CPU.

REWARD_MODEL names its folder, absolute; `reward.pass_env` lets it through, and `reward.worker_memory_mb` must leave
room for torch. The whole conversation is scored, rendered by the model's chat template, at its last token. The folder
is looked at when the file is imported, so that a wrong one ends the run at once, and loaded at the first call.
"""

import json
import os
from functools import cache
from typing import Any


def _found(folder: str) -> str:
    """A reward model's folder. Raises ValueError, saying what is there instead."""
    if not folder:
        raise ValueError("set services.reward.env.REWARD_MODEL to a reward model's folder, and let it through pass_env")
    if not os.path.isabs(folder):  # the worker is in a folder of its own
        raise ValueError(f"REWARD_MODEL is {folder!r}: give an absolute path, such as $PWD/{folder}")
    if not os.path.isdir(folder):
        raise ValueError(f"REWARD_MODEL: there is no folder {folder!r}")
    if os.path.isfile(os.path.join(folder, "run.json")):
        raise ValueError(f"REWARD_MODEL is a run; its model is {os.path.join(folder, 'model')}")
    try:
        with open(os.path.join(folder, "config.json")) as file:
            named = ", ".join(json.load(file)["architectures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"REWARD_MODEL: {folder!r} has no config.json of a model") from error
    if not named.endswith("ForSequenceClassification"):
        raise ValueError(f"REWARD_MODEL: {folder!r} is a {named}, which has no score: give what a reward model left")
    return folder


FOLDER = _found(os.environ.get("REWARD_MODEL", ""))


@cache
def _loaded() -> tuple[Any, Any]:
    """(tokenizer, model), once a process."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    safe: Any = {"trust_remote_code": False, "local_files_only": True}
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, use_safetensors=True, **safe)
    return AutoTokenizer.from_pretrained(FOLDER, **safe), model.eval()


def reward_fn(messages: list[dict[str, str]], answer: object) -> dict[str, float]:
    """`model`, the score; `exact`, 1 for exactly the expected answer, to be looked at with a weight of 0."""
    import torch

    tokenizer, model = _loaded()
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        score = float(model(input_ids=ids).logits[0, 0])
    return {"model": score, "exact": float(messages[-1]["content"] == answer)}
