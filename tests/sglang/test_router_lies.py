"""A server that answers what cannot be, behind a real router, which does not say whose answer it passes on."""

from pathlib import Path
from typing import Any

from support.fake_sglang import Fake, fake_sglang, reply
from support.sglang_fleet import Fleet

NONSENSE = reply([5000])


def serving(fleet: Fleet) -> set[str]:
    """URLs of the servers in use."""
    assert fleet.pool
    return {life.client.url for life in fleet.pool.serving.values()}


def test_the_server_that_lies_is_discarded_and_no_other(python: str, model: Path, tmp_path: Path) -> None:
    """Every request is completed by the one that does not."""
    with (
        fake_sglang() as honest,
        fake_sglang() as liar,
        Fleet(model, tmp_path, python=python, urls=[honest.url, liar.url], router=True) as fleet,
    ):
        fleet.begin(servers=2)
        liar.answers["/generate"] = NONSENSE
        fleet.add(16, new=3)
        fleet.finish(16)
        assert serving(fleet) == {honest.url}
        assert all(one.tokens == [7, 7, 7] for one in fleet.done.values())
        assert not fleet.lost
        told = f"{liar.url} is given up: token 5000 lies outside"
        fleet.until(lambda: any(told in said for said in fleet.said))


def test_what_each_server_denies_discards_none(python: str, model: Path, tmp_path: Path) -> None:
    """A reply that was garbled once is asked for again."""
    with fake_sglang() as one, fake_sglang() as other:
        wrong = [NONSENSE] * 2
        for server in (one, other):
            spoil(server, wrong)
        with Fleet(model, tmp_path, python=python, urls=[one.url, other.url], router=True) as fleet:
            fleet.begin(servers=2)
            fleet.add(4, new=3)
            fleet.finish(4)
            assert serving(fleet) == {one.url, other.url}


def spoil(server: Fake, wrong: list[Any]) -> None:
    """Its first answer to the router, whose requests are those it has not made itself, is one of `wrong`."""
    good = server.answer

    def answer(method: str, path: str, body: dict[str, Any]) -> Any:
        return wrong.pop() if path == "/generate" and wrong else good(method, path, body)

    server.answer = answer  # type: ignore[method-assign]
