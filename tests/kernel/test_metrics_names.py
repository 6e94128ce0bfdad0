"""A metric that is not there: what there is instead."""

import pytest

from midflight.kernel.cli.metrics import instead


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["greedy"], "; did you mean eval/greedy?"),
        (["greedy", "nll"], "; did you mean eval/greedy or eval/nll?"),
        (["reedy"], "; there are: eval/greedy, eval/nll, loss"),
    ],
)
def test_the_name_that_ends_so(names: list[str], said: str) -> None:
    """`up` prints held-out measures without their first part."""
    assert instead(names, {"loss", "eval/nll", "eval/greedy"}) == said
