"""The score of a reward model, such as reward-model.yaml leaves: a transformers sequence classifier, on the CPU.

REWARD_MODEL names its folder, absolute; `reward.pass_env` lets it through, and `reward.worker_memory_mb` must leave
room for torch. The whole conversation is scored, rendered by the model's chat template, at its last token.
"""

import os
from functools import cache
from typing import Any


@cache
def _loaded() -> tuple[Any, Any]:
    """(tokenizer, model), once a process."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = os.environ.get("REWARD_MODEL", "")
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise RuntimeError(f"REWARD_MODEL is {folder!r}: give the absolute path of a reward model's folder")
    torch.set_num_threads(1)
    safe: Any = {"trust_remote_code": False, "local_files_only": True}
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, **safe)
    return AutoTokenizer.from_pretrained(folder, **safe), model.eval()


def reward_fn(messages: list[dict[str, str]], answer: object) -> dict[str, float]:
    """`model`, the score; `exact`, 1 for exactly the expected answer, to be looked at with a weight of 0."""
    import torch

    tokenizer, model = _loaded()
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        score = float(model(input_ids=ids).logits[0, 0])
    return {"model": score, "exact": float(messages[-1]["content"] == answer)}
