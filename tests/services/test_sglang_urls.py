"""Servers at URLs that are none of SGLang's, are not there, die, or answer what cannot be; each over real HTTP."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_sglang import Fake, fake_sglang, reply
from support.sglang_fleet import Fleet, tiny_model

from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port
from midflight.services.rollout.sglang import client, drive, pool

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


def test_what_is_always_aborted_before_its_first_token_is_refused(
    fake: Fake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few tries with pauses; the server goes on."""
    monkeypatch.setattr(drive, "PAUSE_S", 0.001)
    fake.answers["/generate"] = reply([], ending="abort")
    with Fleet(model, tmp_path, urls=[fake.url]) as fleet:
        fleet.begin()
        fleet.add(1)
        fleet.until(lambda: fleet.lost, SOON_S)
        lost = fleet.lost[0]
        assert lost.refuse
        assert lost.why == f"{fake.url} aborted it {drive.TRIES} times in a row without a token"
        assert fake.asked.count("POST /generate") == drive.TRIES
        del fake.answers["/generate"]
        fleet.add(1, first=1)
        fleet.finish(1)


def test_pauses_between_aborted_tries_grow(fake: Fake, model: Path, tmp_path: Path) -> None:
    """So that a server in trouble is not asked hundreds of times a second."""
    aborted, times, good = [reply([], ending="abort")] * 4, [], fake.answer

    def answer(method: str, path: str, body: dict[str, Any]) -> Any:
        if path == "/generate":
            times.append(time.monotonic())
        return aborted.pop() if path == "/generate" and aborted else good(method, path, body)

    fake.answer = answer  # type: ignore[method-assign]
    with Fleet(model, tmp_path, urls=[fake.url]) as fleet:
        fleet.begin()
        fleet.add(1, new=3)
        fleet.finish(1)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert all(pause >= drive.PAUSE_S * 2**n for n, pause in enumerate(pauses))


@pytest.mark.parametrize("path", ["/generate", "/model_info"])
def test_a_reply_without_end_is_not_read_to_its_end(
    fake: Fake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It is named, with the server and the bound."""
    monkeypatch.setattr(client, "REPLY_BYTES", 10_000)
    fake.answers[path] = b'{"a": "' + b"x" * 200_000 + b'"}'
    text = fate(model, tmp_path, fake.url, then=work if path == "/generate" else lambda fleet: None)
    most = 10_000 + (80 * client.TOKEN_BYTES if path == "/generate" else 0)
    assert f"{path}: a reply of more than {most} bytes" in text
    assert fake.url in text


def test_the_longest_reply_there_can_be_is_taken(fake: Fake, model: Path, tmp_path: Path) -> None:
    """Every token of another version, with the longest numbers that there are."""
    tokens = [200] * 80
    longest = reply(tokens, logprob=-1.2345678901234567e-300)
    longest["text"] = "\u0928" * 3 * len(tokens)
    longest["meta_info"]["weight_versions"] = [{"version": "0", "start": n, "end": n + 1} for n in range(80)]
    fake.answers["/generate"] = longest
    with Fleet(model, tmp_path, urls=[fake.url]) as fleet:
        fleet.begin()
        fleet.add(1, new=80)
        fleet.finish(1)


@pytest.mark.parametrize("version", ["0.5.23rc1", "0.5.21", "0.5.22.post1", "0.6.0.dev3+g12ab", "v1.0"])
def test_versions_that_are_new_enough(fake: Fake, model: Path, tmp_path: Path, version: str) -> None:
    """As PEP 440 orders them."""
    fake.server["version"] = version
    with Fleet(model, tmp_path, urls=[fake.url]) as fleet:
        fleet.begin()


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.5.21rc1", "SGLang 0.5.21rc1; at least 0.5.21 is needed"),
        ("0.5.9", "at least 0.5.21 is needed"),
        ("main", "/server_info: InvalidVersion"),
        (None, "/server_info: InvalidVersion"),
    ],
)
def test_versions_that_are_not(fake: Fake, model: Path, tmp_path: Path, version: Any, told: str) -> None:
    """Too old, or none at all."""
    fake.server["version"] = version
    assert told in fate(model, tmp_path, fake.url)
