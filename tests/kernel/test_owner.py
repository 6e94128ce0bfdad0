"""What every service finds in its environment before it has imported anything."""

import os
import subprocess
import sys

from midflight.kernel.owner import environment
from midflight.kernel.spec import ServiceSpec

CHILD = """
import resource


def step():
    return [bytearray(b"x") * size for size in (200_000, 3 << 20, 20 << 20) * 8]


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    """Of each step's 47,000 pages none is faulted in again; a tensor's memory is an allocation as these are."""
    env = {**os.environ, **environment(ServiceSpec(kind="x"))}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
