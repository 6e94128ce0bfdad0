"""Reward models: a language model's body with a score in place of its head, as transformers' sequence classifiers."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from midflight.kernel.mistake import UserMistake

from .build import Model
from .open import DTYPES, fitting, open_model, tokenizer_of
from .tokenizer import Tokenizer


def open_scorer(section: Mapping[str, Any], seed: int) -> tuple[Tokenizer, Model]:
    """The topology's `model` section -> (tokenizer, sequence classifier with one label).

    The folder may hold a causal language model, whose body it begins with and a score of zero, or a reward model. The
    score is that of the last token which is not the pad token, as transformers has it; without one, the end token takes
    its place. Raises UserMistake, naming the path or the field, when it cannot be had.
    """
    dtype = DTYPES[section.get("dtype") or "float32"]
    path = section.get("path")
    if not path:
        tokenizer, causal = open_model(section, seed)
        causal.config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            lm = AutoModelForSequenceClassification.from_config(causal.config, dtype=dtype)  # type: ignore[no-untyped-call]
        lm.base_model.load_state_dict(causal.base_model.state_dict())
        missing = ["score.weight"]
    else:
        try:
            tokenizer = tokenizer_of(section)
            with torch.random.fork_rng(devices=[]):
                lm, found = AutoModelForSequenceClassification.from_pretrained(
                    path,
                    num_labels=1,
                    dtype=dtype,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            fitting(tokenizer, lm, section)
        except (OSError, ValueError) as error:
            raise UserMistake(f"model: cannot load {path!r} as a reward model: {str(error).splitlines()[0]}") from error
        missing = found["missing_keys"]
    if not hasattr(lm, "score"):
        raise UserMistake(f"model: {type(lm).__name__} keeps its score elsewhere than in `score`: use another model")
    if "score.weight" in missing:
        with torch.no_grad():
            lm.score.weight.zero_()
    if lm.config.pad_token_id is None:
        pad = tokenizer.pad_token_id
        lm.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return tokenizer, lm
