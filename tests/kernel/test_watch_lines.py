"""What the terminal that started a run prints of an evaluation round."""

from typing import Any, cast

import pytest

from midflight.kernel.cli.watch import Watch
from midflight.kernel.launch import Launched
from midflight.messages.events import Event


class Launch:
    """As much of a launch as a line needs."""

    resumed = False


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"eval/reward": 0.5, "n": 16, "refused": 0}, "held-out reward 0.500 at step 5 (16 prompts)"),
        ({"eval/reward": 0.5, "n": 12, "refused": 4}, "held-out reward 0.500 at step 5 (12 prompts, 4 refused)"),
        ({"n": 0, "refused": 16}, "held-out: all 16 samples were refused, at step 5"),
    ],
)
def test_an_evaluation_round_says_what_was_refused(
    body: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when that was everything."""
    watch = Watch(cast(Launched, Launch()))
    watch._on_evaluation(Event(**{**Event.EXAMPLE, "topic": "evaluation", "step": 5, "body": body}))
    assert line in capsys.readouterr().out.splitlines()
