"""Judge: the reward is what another model, served elsewhere, thinks of the answer.

    midflight up configs/demo.yaml --run-dir runs/judge            # a model that knows the task
    python examples/judge/judge.py runs/judge judge-model          # its newest checkpoint as a Hugging Face directory

`reward_fn` asks the SGLang server at JUDGE_URL for the log-probs of the conversation and of its beginning, and returns
the likelihood of a token of the answer (their geometric mean), from 0 to 1. Standard library only: it runs in the
sandbox, with the network that `judge.yaml` gives it. When the judge is away it waits a little, and then raises
ConnectionError, which says that the answer is not to blame: the sample is scored again later.
"""

import asyncio
import http.client
import json
import math
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = urlsplit(os.environ.get("JUDGE_URL", "http://127.0.0.1:31000")).netloc
ASK_S = 10.0
PAUSES_S = (0.5, 1.0, 2.0)


async def reward_fn(messages: list[dict[str, str]], answer: object) -> float:
    """Both questions at once; the judge knows nothing of `answer`."""
    asked = "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages[:-1]) + "<|assistant|>"
    whole = asked + messages[-1]["content"] + "<|end|>"
    every, before = await asyncio.gather(log_probs(whole), log_probs(asked))
    own = every[len(before) :]
    return math.exp(sum(own) / len(own))


async def log_probs(text: str) -> list[float]:
    """Of each token but the first, given those before it (nats). Raises ConnectionError when the judge stays away."""
    for pause in (*PAUSES_S, None):
        try:
            return await asyncio.to_thread(asked_once, text)
        except (OSError, http.client.HTTPException) as error:
            if pause is None:
                raise ConnectionError(f"the judge at {ADDRESS}: {error!r}") from error
            await asyncio.sleep(pause)
    raise AssertionError


def asked_once(text: str) -> list[float]:
    """One request. Raises OSError or HTTPException when it should be tried again, ValueError when that is no use."""
    body = {"text": text, "return_logprob": True, "logprob_start_len": 0, "sampling_params": {"max_new_tokens": 1}}
    connection = http.client.HTTPConnection(ADDRESS, timeout=ASK_S)
    try:
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        said = reply.read()
    finally:
        connection.close()
    if reply.status >= 500:
        raise ConnectionError(f"HTTP {reply.status}")
    if reply.status != 200:
        raise ValueError(f"the judge refuses: HTTP {reply.status} {said[:200]!r}")
    return [float(one[0]) for one in json.loads(said)["meta_info"]["input_token_logprobs"][1:]]


def export(run: Path, to: Path) -> None:
    """Write the newest checkpoint of a run as a directory that SGLang, or anything else, can load."""
    from midflight.services.learner.checkpoints.stored import whole_model
    from midflight.services.model.build import save_model
    from midflight.services.model.open import open_model

    config = json.loads((run / "config.json").read_text())
    tokenizer, model = open_model(config["model"], config["seed"])
    model.load_state_dict(whole_model(max((run / "checkpoints").glob("step-*"))), strict=False)
    save_model(model, tokenizer, to)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
