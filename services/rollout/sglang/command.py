"""Command lines and environment of the processes that a rollout launches."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from midflight.kernel.mistake import UserMistake

from .config import SglangConfig

LAUNCHER = Path(__file__).with_name("launcher.py")
PYTHON_ENV = "MIDFLIGHT_SGLANG_PYTHON"
BESIDE = Path(".venv-sglang/bin/python")
NOTHING = "none"
"""The weight version of a server that has been told no weights."""
PLATFORM = "midflight_cpu"
KEEP_ALIVE_S = 3600
"""After which a server closes an idle connection: long after the rollout, or the router, has done so."""
MARGIN = 8
"""Positions that a server wants to have left when a sequence of the largest length ends."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the servers load: a folder or hub id, the dtype by torch's name, and the largest sequence."""

    path: str
    dtype: str
    max_length: int


def interpreter(config: SglangConfig) -> str:
    """The Python of SGLang's environment. Raises UserMistake when there is none."""
    named = config.python or os.environ.get(PYTHON_ENV)
    if named is None and BESIDE.exists():
        named = os.path.abspath(BESIDE)
    if named is None and (spec := find_spec("sglang")) and spec.origin:
        named = sys.executable
    if named is None or not os.access(named, os.X_OK):
        where = f"no interpreter at {named}" if named else "no environment with SGLang"
        raise UserMistake(
            f"sglang: {where}: make one with `make .venv-sglang` (docs/sglang.md), or name it in `python`"
        )
    return named


def server(config: SglangConfig, model: Model, device: str, port: int, index: int) -> list[str]:
    """`sglang.launch_server` and its arguments for the server number `index`."""
    argv = ["sglang.launch_server", "--model-path", model.path, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--dtype", model.dtype, "--tp-size", str(config.tp_size)]
    argv += ["--context-length", str(model.max_length + MARGIN)]
    argv += ["--max-running-requests", str(config.slots), "--weight-version", NOTHING]
    argv += ["--skip-tokenizer-init", "--skip-server-warmup", "--sampling-defaults", "openai", "--log-level", "warning"]
    if config.pause == "in_place":  # with it the first token after a switch carries the new version wrongly
        argv += ["--disable-overlap-schedule"]
    if device == "cpu":
        tokens = config.slots * (model.max_length + MARGIN)
        argv += ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        argv += ["--grammar-backend", "none", "--disable-cuda-graph", "--sleep-on-idle"]
        argv += ["--mem-fraction-static", "0.5", "--max-total-tokens", str(tokens)]
    else:
        argv += ["--device", "cuda", "--base-gpu-id", str(index * config.tp_size)]
    return argv + config.server_args


def router(port: int, metrics_port: int) -> list[str]:
    """`sglang_router.launch_router` without a worker: one is added when its weights are verified.

    It probes nobody: /health blocks while a server is paused, and the rollout watches the servers itself. Nor does it
    retry: a request whose server died is sent again by the rollout, which knows what it may trust.
    """
    argv = ["sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware"]
    argv += ["--disable-health-check", "--disable-retries", "--disable-circuit-breaker", "--log-level", "warn"]
    return [*argv, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]


def environment(device: str, tp_size: int, ours: Mapping[str, str]) -> dict[str, str]:
    """Of a launched process: ours, without our import path."""
    env = {name: value for name, value in ours.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0"}
    env |= {"SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    env |= {"SGLANG_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S)}
    if device == "cpu":
        env |= {"SGLANG_PLATFORM": PLATFORM, "SGLANG_USE_CPU_ENGINE": "0", "OMP_NUM_THREADS": "1"}
        if tp_size > 1:  # else it wants as many NUMA nodes as ranks
            cores = sorted(os.sched_getaffinity(0))
            env["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[i % len(cores)]) for i in range(tp_size))
    return env
