"""A real run whose reward file nobody vouches for: it is scored in a sandbox, and everybody can see in which."""

from pathlib import Path

from support.e2e_run import Up, midflight, nothing_left, tiny
from support.sandbox_bench import need

from midflight.services.reward.sandbox.ladder import chosen

DESCRIBES_ITS_WALLS = """
import os
def reward_fn(messages, answer):
    inside = os.environ.keys() <= {"PATH", "HOME"} and os.getppid() == 1
    return float(inside and messages[-1]["content"].strip() == answer)
"""


def test_an_untrusted_reward_file_is_scored_in_a_sandbox(tmp_path: Path) -> None:
    """`ps` names the level in force, no sample is refused, and nothing is left of it."""
    need("namespaces")
    reward = tmp_path / "mine.py"
    reward.write_text(DESCRIBES_ITS_WALLS)
    with Up(tmp_path, tiny(tmp_path, steps=10_000, reward=reward), "services.reward.trusted=false") as up:
        up.step(1)
        shown = midflight(tmp_path, "ps", "--run", str(up.path), "--json")
        assert shown.code == 0, shown.err
        run_id = up.run_id()
        assert midflight(tmp_path, "down", "--now", "--run", str(up.path)).code == 0
        up.wait()
    (service,) = [one for one in shown.json["services"] if one["kind"] == "reward"]
    assert service["stats"]["isolation"] == chosen("auto", trusted=False)
    assert service["stats"]["faults"] == 0
    assert list(nothing_left(up.path, run_id)) == []
