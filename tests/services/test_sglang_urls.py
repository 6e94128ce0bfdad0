"""Servers at URLs that are none of SGLang's, are not there, die, or answer what cannot be; each over real HTTP."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_sglang import Fake, fake_sglang, reply
from support.sglang_fleet import Fleet, tiny_model

from midflight.kernel.mistake import UserMistake
from midflight.services.rollout.sglang import pool
from midflight.services.rollout.sglang.process import free_port

SOON_S = 30.0
HTML = b"<html>hello</html>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's shape, as a Hugging Face directory."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(pool, "RETRY_S", (0.0, 0.0, 0.0))


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server that answers as SGLang does until told otherwise."""
    with fake_sglang() as server:
        yield server


def fate(model: Path, folder: Path, *urls: str, then: Callable[[Fleet], None] = lambda fleet: None) -> str:
    """What a rollout on these servers dies of; the text of its UserMistake, or 'fault: ' and that of another error.

    then: what happens meanwhile.
    """
    folder.mkdir(exist_ok=True)
    try:
        with Fleet(model, folder, urls=list(urls)) as fleet:
            then(fleet)
            fleet.until(lambda: fleet.done, SOON_S)
    except UserMistake as error:
        return str(error)
    except RuntimeError as error:
        return f"fault: {error}"
    raise AssertionError("it lives")


def work(fleet: Fleet) -> None:
    """Give it weights and a request."""
    fleet.begin()
    fleet.add(1)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, HTML, {}), "<html>hello</html>"),
        ((404, HTML, {}), "404 <html>hello</html>"),
        ((302, b"", {"location": "http://127.0.0.1/login"}), "302, look at http://127.0.0.1/login"),
        ((302, b"", {"location": "http://[::1"}), "Invalid URL"),
        ((200, b'\xff\xfe{"a":\xff', {}), "/model_info: no weight_version"),
        ((200, b"[" * 100_000, {}), "/model_info: no weight_version"),
        ((200, HTML, {"content-encoding": "gzip"}), "DecodingError"),
        ((502, b"bad gateway", {}), "502 bad gateway"),
        (None, "/model_info: no weight_version: None"),
        ([1, 2], "[1, 2]"),
        ("text", "text"),
        ({}, "{}"),
    ],
)
def test_what_is_no_sglang_server_is_a_mistake(fake: Fake, model: Path, tmp_path: Path, answer: Any, told: str) -> None:
    """It is named with what it answered and what to do, and nothing is asked of it that changes anything."""
    fake.answers[""] = answer
    text = fate(model, tmp_path, fake.url)
    assert text.startswith(f"sglang: {fake.url} is not an SGLang server: ")
    assert told in text
    assert text.endswith("or correct `urls`")
    assert set(fake.asked) == {"GET /model_info"}


@pytest.mark.parametrize("raw", [b"\0\1\2garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
def test_what_does_not_speak_http_is_a_mistake(fake: Fake, model: Path, tmp_path: Path, raw: bytes) -> None:
    """Or breaks off."""
    fake.raw = raw
    assert f"{fake.url} is not an SGLang server: /model_info: RemoteProtocolError" in fate(model, tmp_path, fake.url)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/server_info", HTML),
        ("/server_info", {"version": "0.5.23", "tp_size": "x"}),
        ("/server_info", b'{"version": "0.5.23", "tp_size": Infinity}'),
        ("/continue_generation", (404, b"not found", {})),
    ],
)
def test_what_is_only_like_one_is_a_mistake(fake: Fake, model: Path, tmp_path: Path, path: str, answer: Any) -> None:
    """The path it fails at is named."""
    fake.answers[path] = answer
    assert f"{fake.url} is not an SGLang server: {path}: " in fate(model, tmp_path, fake.url)


def test_where_nobody_ever_answered_is_a_mistake(model: Path, tmp_path: Path) -> None:
    """After several attempts; all of them are named."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    text = fate(model, tmp_path, *urls)
    assert text.startswith("sglang: nobody answers at ")
    assert all(f"nobody answers at {url}: /model_info: ConnectError" in text for url in urls)


def test_a_server_that_is_about_to_serve_is_no_mistake(fake: Fake, model: Path, tmp_path: Path) -> None:
    """It has said who it is."""
    fake.answers["/health"] = (503, b"starting", {})
    assert fate(model, tmp_path, fake.url).startswith(f"fault: sglang: no server is left: {fake.url}: ")


def test_a_server_that_worked_and_is_gone_is_a_fault(fake: Fake, model: Path, tmp_path: Path) -> None:
    """Also to the service that is started again, in the same run."""

    def work_and_die(fleet: Fleet) -> None:
        fleet.begin()
        fake.stop()
        fleet.add(1)

    died = fate(model, tmp_path, fake.url, then=work_and_die)
    assert died.startswith(f"fault: sglang: no server is left: {fake.url}: ")
    assert "ConnectError" in died
    again = tmp_path / "again"
    again.mkdir()
    (again / "urls").write_text((tmp_path / "urls").read_text())
    assert fate(model, again, fake.url).startswith(f"fault: sglang: no server is left: {fake.url}: ")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (reply([5000, 98]), "token 5000 lies outside the vocabulary"),
        (reply([-5, 98]), "token -5 lies outside the vocabulary"),
        (reply([7] * 81), "81 tokens, where 80 were asked for"),
        (reply([7], logprob=5.0), "log-prob 5 is above 0"),
        (reply([], ending="stop"), "no tokens, though finish_reason is 'stop'"),
        (reply([7], logprob=float("nan")), "log-probs are not finite"),
        ([reply([7])], "no reply of /generate"),
        (HTML, "no reply of /generate"),
    ],
)
def test_a_server_that_answers_what_cannot_be_is_not_trusted(
    fake: Fake, model: Path, tmp_path: Path, answer: Any, why: str
) -> None:
    """Nothing of it becomes a completion."""
    fake.answers["/generate"] = answer
    text = fate(model, tmp_path, fake.url, then=work)
    assert text.startswith(f"fault: sglang: no server is left: {fake.url}: ")
    assert why in text


def test_what_was_aborted_before_its_first_token_is_asked_again(fake: Fake, model: Path, tmp_path: Path) -> None:
    """Until it has some."""
    aborted = [reply([], ending="abort"), reply([], ending="abort")]
    good = fake.answer

    def answer(method: str, path: str, body: dict[str, Any]) -> Any:
        return aborted.pop() if path == "/generate" and aborted else good(method, path, body)

    fake.answer = answer  # type: ignore[method-assign]
    with Fleet(model, tmp_path, urls=[fake.url]) as fleet:
        fleet.begin()
        fleet.add(1, new=3)
        fleet.finish(1)
        assert fleet.done[0].tokens == [7, 7, 7]
        assert fleet.done[0].versions == [0, 0, 0]
