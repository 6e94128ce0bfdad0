"""torchrun's words in the environment of `midflight up`."""

from pathlib import Path

import pytest

from midflight.kernel import torchrun
from midflight.kernel.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
SAYS = {
    "RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "ROLE_NAME": "default",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "LOCAL_TIME": "mine",
}


def test_only_the_learner_is_told() -> None:
    """Other services would act on it."""
    environ = dict(SAYS)
    torchrun.taken(environ)
    assert environ == {"MIDFLIGHT_WORLD_SIZE": "4", "MIDFLIGHT_MEET": "node-1", "LOCAL_TIME": "mine"}
    torchrun.taken(environ)
    assert environ["MIDFLIGHT_WORLD_SIZE"] == "4"


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}])
def test_one_process_is_an_ordinary_run(environ: dict[str, str]) -> None:
    """Nothing is changed."""
    before = dict(environ)
    torchrun.taken(environ)
    assert environ == before
    assert torchrun.rank(environ) == 0


@pytest.mark.parametrize("rank", ["0", "3"])
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["services.learner.ranks=2"], "services.learner.ranks: 2: set it to 4, or nnodes times nproc-per-node"),
        (["services.learner.ranks=4"], "set services.learner.ticket"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    rank: str, more: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every process, with the ways out."""
    for name, value in {**SAYS, "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    assert main(["up", str(CONFIGS / "demo.yaml"), *more]) == 2
    assert text in capsys.readouterr().err
