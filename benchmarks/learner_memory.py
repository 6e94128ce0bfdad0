"""What the learner's memory choices move, keep and cost. Run: `python benchmarks/learner_memory.py [part ...]`.

Parts: offload (bytes of activations that would leave a GPU in a micro-batch of 2048 tokens), optimizers (bytes of
state, and CPU seconds of an update; adamw_8bit where torchao is installed), compile (CPU seconds of the first passes
and of later ones). One model of 3.7 M parameters, one thread; CPU seconds are the least of several, for others use the
machine too. One JSON line each; the load is printed first.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.util import find_spec

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common import as_a_service, machine
from learner_scale import chunked, documents, show
from toys import qwen

from midflight.services.learner.network import offload
from midflight.services.learner.network.compiled import compile_layers
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.optimizers.settings import Name
from midflight.services.learner.packs.packing import PackedBatch, microbatches
from midflight.services.model.stack import decoder_layers

TIMES = 5


def pack(length: int = 257, count: int = 8) -> PackedBatch:
    """Documents of one length."""
    (found,) = microbatches(documents([length] * count, 16_384), range(count), 2048)
    return found


def least(work: Callable[[], object]) -> float:
    """CPU seconds."""
    spent = []
    for _ in range(TIMES):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def activations() -> None:
    """What would be copied to the host and back, by `recompute_every`."""
    moved: list[int] = []

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.nbytes)
        return tensor

    offload.to_host = counted
    for bf16 in (False, True):
        for every in (0, 2, 1):
            lm = qwen(128, 8, 8, 16_384)
            if every:
                recompute_activations(lm, every)
            moved.clear()
            torch.autograd.backward(chunked(Policy(lm, bf16=bf16, offload=True), pack()))
            show("offload", bf16=str(bf16), recompute_every=str(every), mib=sum(moved) / 2**20, tensors=len(moved))


def optimizers() -> None:
    """Of all parameters."""
    chosen: list[tuple[Name, bool]] = [("adamw", False), ("adamw", True), ("adamw_8bit", False)]
    for name, host in chosen:
        if name == "adamw_8bit" and not find_spec("torchao"):
            continue
        policy = Policy(qwen(128, 8, 8, 16_384))
        optimizer = PolicyOptimizer(policy, OptimSettings(name=name), host)
        for parameter in policy.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.advance()
        seconds = least(optimizer.update)
        state = sum(x.nbytes for x in optimizer.tensors().values())
        twins = sum(x.nbytes for x in optimizer.twins.of) if optimizer.twins else 0
        show("optimizers", name=name, host=str(host), state_mib=state / 2**20, twins_mib=twins / 2**20, cpu_s=seconds)


def compiling() -> None:
    """A forward and a backward pass."""
    packs = [pack(), pack(129, 12), pack(65, 31)]
    for bf16 in (False, True):
        for compiles in (False, True):
            lm = qwen(128, 8, 8, 16_384)
            policy = Policy(lm, bf16=bf16)
            if compiles:
                compile_layers(lm, decoder_layers(lm))
            began = time.process_time()
            for one in packs:
                torch.autograd.backward(chunked(policy, one))
            first = time.process_time() - began

            def again(policy: Policy = policy) -> None:
                torch.autograd.backward(chunked(policy, packs[0]))

            show("compile", bf16=str(bf16), compiled=str(compiles), first_three_s=first, later_s=least(again))


PARTS = {"offload": activations, "optimizers": optimizers, "compile": compiling}

if __name__ == "__main__":
    as_a_service()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when omitted")
    torch.set_num_threads(1)
    print(json.dumps(machine()))
    for chosen in parser.parse_args().parts or PARTS:
        PARTS[chosen]()
