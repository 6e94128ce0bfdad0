"""What `midflight models export` writes, loaded by a real server with its tokenizer and chat template."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import torch
from support.exported import past
from support.sglang_fleet import Lone

from midflight.services.learner.checkpoints.export import export

NEAR = 1e-4
"""Nats within which fp32 log-probs of two implementations agree."""
CHAT = [{"role": "user", "content": "rev <é>"}]


def post(url: str, body: dict[str, Any]) -> Any:
    """The answer to a JSON request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_a_server_says_what_the_checkpoint_would(python: str, tmp_path: Path) -> None:
    """The chat template makes the same prompt, and the log-probs are those of the model that was trained."""
    run = past(tmp_path / "run")
    export(run.folder, run.checkpoint(2), tmp_path / "out")
    prompt = list(run.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"])
    text = run.tokenizer.decode(prompt)
    with Lone(python, tmp_path / "out", tmp_path, text=True) as server:
        sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        said = post(f"{server.url}/generate", {"text": text, "sampling_params": sampling, "return_logprob": True})
        chat = {"model": "any", "messages": CHAT, "max_tokens": 4, "temperature": 0}
        answered = post(f"{server.url}/v1/chat/completions", chat)
    assert said["meta_info"]["prompt_tokens"] == answered["usage"]["prompt_tokens"] == len(prompt)
    told = said["meta_info"]["output_token_logprobs"]
    tokens, logps = [one[1] for one in told], torch.tensor([one[0] for one in told])
    with torch.inference_mode():
        logits = run.model.eval()(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    own = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert len(tokens) == 8
    assert tokens == logits.argmax(-1).tolist()
    assert (own - logps).abs().max() < NEAR
