"""The plug-in in SGLang's own environment: found by its entry point, and made of what it says."""

import os
import subprocess

CODE = """
from sglang.srt.platforms import current_platform as platform
import sys, os
real = "torchvision" in sys.modules and hasattr(sys.modules["torchvision"], "ops")
models = os.environ["SGLANG_DISABLED_MODEL_ARCHS"].split(",")
print(type(platform).__name__, platform.device_type, platform.is_out_of_tree(), real)
print("qwen3" in models, "gemma2" in models)
"""


def test_sglang_finds_it_by_its_entry_point(python: str) -> None:
    """A platform from outside, with torchvision stood in for and only the wanted architectures left."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"SGLANG_PLATFORM": "midflight_cpu", "SGLANG_USE_CPU_ENGINE": "0"}
    ran = subprocess.run([python, "-c", CODE], env=env, capture_output=True, text=True, timeout=600)
    assert ran.stdout.split() == ["TorchCpuPlatform", "cpu", "True", "False", "False", "True"], ran.stderr[-2000:]
