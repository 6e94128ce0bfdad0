"""What the engine keeps for the shapes it has met: a bounded number of them, however long it runs."""

import json
import os
import subprocess
import sys

MOST_GROWTH_MB = 60.0
"""Compiled kernels of all shapes of this engine; without few shapes it was 240."""
UPDATES = """
import json, random, psutil, torch
from midflight.services.model.open import open_model
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Request

torch.set_num_threads(1)
size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            intermediate_size=192, max_position_embeddings=128)
_, model = open_model({"build": size}, 0)
engine, rng, state, sizes = Engine(model, slots=16, max_length=120, recompute_kv=True), random.Random(0), {}, []
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
ids = iter(range(10**6))
for version in range(1, 241):
    for _ in range(6):
        while engine.free_slots:
            prompt = [rng.randrange(1, 200) for _ in range(rng.randint(8, 20))]
            engine.add(Request(next(ids), prompt, max_new_tokens=96, temperature=1.0, seed=version))
        engine.step()
    engine.load_weights(state, version)
    sizes.append(psutil.Process().memory_info().rss / 2**20)
print(json.dumps([sizes[9], sizes[-1]]))
"""


def test_recomputed_keys_and_values_of_any_lengths_keep_it_small() -> None:
    """Rows are as long as they happen to be at an update; that is not a kernel compiled and kept for every length."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", UPDATES], capture_output=True, text=True, timeout=300, env=env)
    assert not done.returncode, done.stderr[-2000:]
    early, late = json.loads(done.stdout)
    assert late - early < MOST_GROWTH_MB, f"{early:.0f} MiB after 10 updates, {late:.0f} after 240"
