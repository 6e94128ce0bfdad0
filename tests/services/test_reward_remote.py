"""The last rung: calls over HTTP to a real sandbox service, with the outcomes of a local pool."""

import http.client
import json
import select
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sandbox_bench import RUNS_THE_ANSWER, fault, need

from midflight.kernel.mistake import UserMistake
from midflight.services.reward import Acted, InfrastructureFault, Job, Scored, Spec
from midflight.services.reward.sandbox import remote
from midflight.services.reward.sandbox.remote import RemotePool
from midflight.services.reward.sandbox.server import Service
from midflight.services.reward.verdict import Outcome

TOOLS = "\ndef interact(messages, state):\n    state['n'] = 1\n    return [{'role': 'tool', 'content': 'x'}]\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A sandbox service on a free port, which wants a token."""
    need("namespaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(remote.TOKEN, "hunter2")
        server = Service("127.0.0.1", 0, workers=2, isolation="namespaces")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(RUNS_THE_ANSWER + TOOLS)
    return path


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.server_port}"


def outcomes(pool: RemotePool, *jobs: Job) -> list[Outcome]:
    """Wait for the outcomes of jobs, in their order."""
    poller = select.poll()
    poller.register(pool.fileno(), select.POLLIN)
    for job in jobs:
        assert pool.submit(job)
    found: dict[int, Outcome] = {}
    deadline = time.monotonic() + 60.0
    while len(found) < len(jobs):
        assert poller.poll(max(0.0, deadline - time.monotonic()) * 1000), found
        found |= {verdict.id: verdict.outcome for verdict in pool.on_readable(time.monotonic())}
    return [found[job.id] for job in jobs]


def test_the_outcomes_are_those_of_a_local_pool(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards, the tools' messages with their state, and each kind of fault, several at a time."""
    monkeypatch.setenv(remote.TOKEN, "hunter2")
    pool = RemotePool(Spec(file, time_limit_s=2.0, memory_bytes=256 << 20), url(service), calls=4)
    codes = ["", "open('/etc/hostname')", "time.sleep(60)", "x = bytearray(1 << 30)", "os._exit(3)", "got['x'] = 'y'"]
    scored, *faults = outcomes(pool, *(Job(number, [], code) for number, code in enumerate(codes)))
    (acted,) = outcomes(pool, Job(1, [], "", interact=True, state={}, call="1:0"))
    assert isinstance(scored, Scored)
    assert [fault(one).blame for one in faults] == ["raised", "time", "memory", "exit", "returned"]
    assert isinstance(acted, Acted)
    assert (acted.messages, acted.state) == ([{"role": "tool", "content": "x"}], {"n": 1})
    assert pool.close() == []


def test_a_service_that_is_away_is_not_the_programs_fault(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is given back, with the reason, and the pool goes on."""
    monkeypatch.setattr(remote, "_WAITS_S", (0.01, 0.01))
    pool = RemotePool(Spec(file), "http://127.0.0.1:9")
    (away,) = outcomes(pool, Job(1, [], ""))
    assert isinstance(away, InfrastructureFault)
    assert "the sandbox service 127.0.0.1:9: ConnectionRefusedError" in away.why
    assert pool.broken is None
    pool.close()


@pytest.mark.parametrize(
    ("code", "token", "network", "why"),
    [
        (
            "import no_such_module\ndef reward_fn(m, a): ...",
            "hunter2",
            False,
            "rewards.py:1: importing the file raised",
        ),
        ("def reward_fn(m, a): ...", "hunter1", False, "the bearer token is not this service's"),
        ("def reward_fn(m, a): ...", "hunter2", True, "gives no network"),
    ],
)
def test_what_no_retry_mends_ends_the_pool(
    service: Service, file: Path, monkeypatch: pytest.MonkeyPatch, code: str, token: str, network: bool, why: str
) -> None:
    """And nothing of the token is told."""
    monkeypatch.setenv(remote.TOKEN, token)
    file.write_text(code)
    pool = RemotePool(Spec(file, network=network), url(service))
    (given_back,) = outcomes(pool, Job(1, [], ""))
    assert isinstance(given_back, InfrastructureFault)
    assert why in str(pool.broken)
    assert token not in str(pool.broken)
    assert not pool.submit(Job(2, [], ""))
    pool.close()


def test_bad_requests_are_refused_and_the_service_goes_on(service: Service) -> None:
    """Whatever comes, there is an answer."""
    for body in (b"{", b"[]", json.dumps({"network": False, "file": 3}).encode()):
        request = urllib.request.Request(f"{url(service)}/score", body, {"Authorization": "Bearer hunter2"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 400
        refused.value.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer h\xfcnter2"}, 401),
        ({"Authorization": "Bearer hunter2", "Content-Length": "many"}, 404),
        ({"Authorization": "Bearer hunter2", "Content-Length": "-1"}, 404),
    ],
)
def test_headers_that_nobody_sane_sends_are_answered(service: Service, headers: dict[str, str], status: int) -> None:
    """A token beyond ASCII, a length that is none: an answer, not a closed connection."""
    connection = http.client.HTTPConnection(url(service).removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/score")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_no_door_is_open_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that others reach must know who asks."""
    monkeypatch.delenv(remote.TOKEN, raising=False)
    with pytest.raises(UserMistake, match="set MIDFLIGHT_SANDBOX_TOKEN"):
        Service("0.0.0.0", 0, workers=1)
