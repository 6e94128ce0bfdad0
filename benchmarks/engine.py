"""Tokens per CPU second of the embedded engine, against `transformers.generate` and the bare matrix products.

    python benchmarks/engine.py [--batch 64] [--new 32] [--rounds 15] [--json FILE]

One thread, the demo's model in fp32, equal lengths (no request stops early), log-probs of all sampled tokens wanted
from both. Two workloads: every prompt distinct, and groups of 8 responses to a prompt, as the demo's training asks for
(the engine then prefills a prompt once; generate repeats it, as its num_return_sequences does). The contenders run in
turn in every round. Times are CPU time of the thread, which on an idle machine is wall time and on a busy one
disturbs less. Speeds are of each one's best round and ratios are of those, with the ratio of the medians beside them.
`generate` samples the plain softmax, no top-k or top-p. Where SGLang's environment is there its server on the CPU has a
row too (`sglang_cpu`): of all its processes' CPU time, and by wall time.

A third workload has mixed lengths: four batches of requests whose prompts take 4 to 14 tokens and whose
answers end after a log-normal number (median 24, sigma 0.9, within 4 to 96). The engine fills a slot when its request
ends; `generate` pads the prompts and goes on until the longest of a batch is done. Only wanted tokens count.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sglang_cpu
import torch
from common import as_a_service

from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import load_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.kernels import linear
from midflight.services.rollout.request import Request

PROMPT_TOKENS = 14
GROUP = 8
MOST_NEW = 96
SGLANG_ROUNDS = 5


def prompts(batch: int, group: int) -> list[list[int]]:
    """Prompts of equal length, each `group` times."""
    generator = torch.Generator().manual_seed(0)
    ids: list[list[int]] = torch.randint(10, 266, (batch // group, PROMPT_TOKENS), generator=generator).tolist()
    return [prompt for prompt in ids for _ in range(group)]


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


def generate_run(model: Any, ids: list[list[int]], new: int, mask: list[list[int]] | None = None) -> Callable[[], None]:
    """The same through `transformers.generate`."""
    inputs = torch.tensor(ids)
    seen = torch.tensor(mask) if mask else torch.ones_like(inputs)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    options |= {"max_new_tokens": new, "min_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}

    def run() -> None:
        with torch.inference_mode():
            out = model.generate(inputs, attention_mask=seen, **options)
            scores = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True).tolist()
        assert sum(map(len, scores)) == len(ids) * new

    return run


def mixed(batch: int) -> list[tuple[list[int], int]]:
    """Four batches of (prompt, tokens wanted)."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randn(4 * batch, generator=generator).mul(0.9).exp().mul(24).round().clamp(4, MOST_NEW)
    starts = torch.randint(4, PROMPT_TOKENS + 1, (4 * batch,), generator=generator)
    ids: list[list[int]] = torch.randint(10, 266, (4 * batch, PROMPT_TOKENS), generator=generator).tolist()
    return [(prompt[:start], int(new)) for prompt, start, new in zip(ids, starts, lengths.tolist(), strict=True)]


def engine_mixed(model: Any, work: list[tuple[list[int], int]], batch: int) -> Callable[[], None]:
    """All of it through `batch` slots, each filled as soon as it is free."""
    engine = Engine(model, slots=batch, max_length=PROMPT_TOKENS + MOST_NEW)

    def run() -> None:
        waiting, done = list(enumerate(work))[::-1], 0
        while engine.active or waiting:
            while waiting and engine.free_slots:
                index, (prompt, new) = waiting.pop()
                engine.add(Request(index, prompt, new, 1.0, seed=index))
            done += sum(len(completion.logprobs) for completion in engine.step())
        assert done == sum(new for _, new in work)

    return run


def generate_mixed(model: Any, work: list[tuple[list[int], int]], batch: int) -> Callable[[], None]:
    """The same in whole batches, prompts padded on the left."""
    runs = []
    for start in range(0, len(work), batch):
        part = work[start : start + batch]
        rows = [[0] * (PROMPT_TOKENS - len(prompt)) + prompt for prompt, _ in part]
        mask = [[0] * (PROMPT_TOKENS - len(prompt)) + [1] * len(prompt) for prompt, _ in part]
        runs.append(generate_run(model, rows, max(new for _, new in part), mask))

    def run() -> None:
        for one in runs:
            one()

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
    grouped, work = prompts(batch, GROUP), mixed(batch)
    runs = {
        "engine": engine_run(model, prompts(batch, 1), new),
        "engine_groups": engine_run(model, grouped, new),
        "generate": generate_run(model, prompts(batch, 1), new),
        "matmul": matmul_run(build, len(tokenizer), batch, new),
        "engine_mixed": engine_mixed(model, work, batch),
        "generate_mixed": generate_mixed(model, work, batch),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    best = {name: min(values) for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    wanted = sum(tokens for _, tokens in work)
    mixed_best = {name: best.pop(f"{name}_mixed") for name in ("engine", "generate")}
    served = sglang_cpu.measure(model, tokenizer, prompts(batch, 1), new, min(rounds, SGLANG_ROUNDS))
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, 1 thread",
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "batch": batch,
        "new_tokens": new,
        "rounds": rounds,
        "tokens_per_cpu_s": {name: round(batch * new / value) for name, value in best.items()},
        "over_generate": {name: round(best["generate"] / value, 2) for name, value in best.items()},
        "over_generate_median": {name: round(medians["generate"] / medians[name], 2) for name in best},
        "mixed_tokens_per_cpu_s": {name: round(wanted / value) for name, value in mixed_best.items()},
        "mixed_over_generate": round(mixed_best["generate"] / mixed_best["engine"], 2),
        "mixed_over_generate_median": round(medians["generate_mixed"] / medians["engine_mixed"], 2),
        "over_matmul": {name: round(best["matmul"] / value, 2) for name, value in best.items()},
        "sglang": served,
    }


def cpu_name() -> str:
    """Model name from /proc/cpuinfo where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Print the table, then the JSON line; write the JSON to a file when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    options = parser.parse_args()
    result = measure(options.batch, options.new, options.rounds)
    print(f"{'':<15}{'tokens/CPU-s':>13}{'x generate':>12}{'(median)':>10}{'x matmul':>10}")
    for name, speed in result["tokens_per_cpu_s"].items():
        over, median = result["over_generate"][name], result["over_generate_median"][name]
        print(f"{name:<15}{speed:>13,}{over:>12.2f}{median:>10.2f}{result['over_matmul'][name]:>10.2f}")
    for name, speed in result["mixed_tokens_per_cpu_s"].items():
        over = result["mixed_over_generate"] if name == "engine" else 1.0
        print(f"{name + ', mixed':<15}{speed:>13,}{over:>12.2f}")
    if served := result["sglang"]:
        print(f"{'sglang (CPU)':<15}{served['tokens_per_cpu_s']:>13,}   {served['tokens_per_s']:,} tokens/s over HTTP")
    print(json.dumps(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    as_a_service()
    main()
