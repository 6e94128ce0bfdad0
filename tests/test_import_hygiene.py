"""What people wait for stays light: no verb and no controller loads torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "mlflow", "wandb", "numpy")
ROOT = Path(__file__).parents[1]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT / ".pkg")}

IMPORTS = {
    "ps without a run": "from midflight.kernel.cli.main import main; assert main(['ps']) == 3",
    "config check": "from midflight.kernel.cli.main import main; assert main(['config', 'check', 'demo']) == 0",
    "plan's options": "import midflight.kernel.cli.plan",
    "kernel process": "import midflight.kernel.kernel, midflight.kernel.main, midflight.kernel.warden",
    "service runtime": "import midflight.kernel.boot",
    "messages": "import midflight.messages.catalogue, midflight.messages.memory, midflight.messages.shm",
    "kl controller": "import midflight.services.controllers.kl.service",
    "ledger": "import midflight.services.ledger.service",
    "reward server": "import midflight.services.reward.service",
    "checkpoints": "import midflight.kernel.cli.models, midflight.services.learner.checkpoints.shelf",
    "tracker": "import midflight.services.tracker.service",
}


@pytest.mark.parametrize("code", IMPORTS.values(), ids=IMPORTS.keys())
def test_light_code_stays_light(code: str, tmp_path: Path) -> None:
    """None of the heavy packages is in `sys.modules` afterwards."""
    code += f"; import sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == []
