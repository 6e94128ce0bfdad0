"""Tokens per CPU second of the embedded engine, against `transformers.generate` and the bare matrix products.

    python benchmarks/engine.py [--batch 64] [--new 32] [--rounds 7] [--json FILE]

One thread, the demo's model in fp32, equal lengths (no request stops early), log-probs of all sampled tokens wanted
from both. The three are run in turn in every round. Times are CPU time of the thread, which on an idle machine is
wall time and on a busy one disturbs less; the figures are each one's best round and the ratios are of those, with the
median of the rounds' ratios beside them. `generate` samples the plain softmax, no top-k or top-p.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch

from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import load_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.kernels import linear
from midflight.services.rollout.request import Request

PROMPT_TOKENS = 14


def prompts(batch: int) -> list[list[int]]:
    """Distinct prompts of equal length."""
    generator = torch.Generator().manual_seed(0)
    ids: list[list[int]] = torch.randint(10, 266, (batch, PROMPT_TOKENS), generator=generator).tolist()
    return ids


def engine_run(model: Any, ids: list[list[int]], new: int) -> Callable[[], None]:
    """All prompts through the engine, admitted at once."""
    engine = Engine(model, slots=len(ids), max_length=PROMPT_TOKENS + new)

    def run() -> None:
        for index, prompt in enumerate(ids):
            engine.add(Request(index, prompt, new, 1.0, seed=index))
        done = 0
        while engine.active:
            done += sum(len(completion.logprobs) for completion in engine.step())
        assert done == len(ids) * new

    return run


def generate_run(model: Any, ids: list[list[int]], new: int) -> Callable[[], None]:
    """The same through `transformers.generate`."""
    inputs = torch.tensor(ids)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    options |= {"max_new_tokens": new, "min_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}

    def run() -> None:
        with torch.inference_mode():
            out = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
            scores = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True).tolist()
        assert sum(map(len, scores)) == len(ids) * new

    return run


def matmul_run(build: Build, vocabulary: int, batch: int, new: int) -> Callable[[], None]:
    """Only the products with weight matrices that decoding the batch needs, by the engine's choice of kernel."""
    heads = build.num_attention_heads + 2 * build.num_key_value_heads
    attention = build.num_attention_heads * build.head_dim
    layer = [
        (heads * build.head_dim, build.hidden_size),
        (build.hidden_size, attention),
        (2 * build.intermediate_size, build.hidden_size),
        (build.hidden_size, build.intermediate_size),
    ]
    shapes = [*layer * build.num_hidden_layers, (vocabulary, build.hidden_size)]
    pairs = [(torch.randn(batch, i), torch.randn(o, i)) for o, i in shapes]

    def run() -> None:
        with torch.inference_mode():
            for _ in range(new):
                for x, weight in pairs:
                    linear(x, weight)

    return run


def seconds(run: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def measure(batch: int, new: int, rounds: int) -> dict[str, Any]:
    """Best tokens/s of each contender and their ratios."""
    torch.set_num_threads(1)
    tokenizer, build = load_tokenizer("bytes"), Build()
    model = build_model(build, tokenizer, seed=0).eval()
    ids = prompts(batch)
    runs = {
        "engine": engine_run(model, ids, new),
        "generate": generate_run(model, ids, new),
        "matmul": matmul_run(build, len(tokenizer), batch, new),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    best = {name: min(values) for name, values in times.items()}
    paired = [slow / fast for slow, fast in zip(times["generate"], times["engine"], strict=True)]
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "batch": batch,
        "new_tokens": new,
        "rounds": rounds,
        "tokens_per_cpu_s": {name: round(batch * new / value) for name, value in best.items()},
        "engine_over_generate": round(best["generate"] / best["engine"], 2),
        "engine_over_generate_median": round(statistics.median(paired), 2),
        "engine_over_matmul": round(best["matmul"] / best["engine"], 2),
    }


def main() -> None:
    """Print the table, then the JSON line; write the JSON to a file when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    result = measure(options.batch, options.new, options.rounds)
    for name, speed in result["tokens_per_cpu_s"].items():
        print(f"{name:<10}{speed:>10,} tokens/CPU-s{speed / result['tokens_per_cpu_s']['generate']:>8.2f} x generate")
    print(json.dumps(result))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
