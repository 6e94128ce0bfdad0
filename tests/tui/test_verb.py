"""`midflight tui` as a verb: what it refuses before a screen is drawn, what the web serves, what the page shows."""

import http.client
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.e2e_run import VERB, environment
from support.tui_kernel import make_run
from support.tui_scenes import SCENES

from midflight.kernel.mistake import UserMistake
from midflight.tui import web

ROOT = Path(__file__).parents[2]


def verb(folder: Path, *words: str, **environ: str) -> tuple[int, str]:
    """Exit code and stderr."""
    ran = subprocess.run([*VERB, "tui", *words], cwd=folder, env={**environment(), **environ}, capture_output=True,
                         text=True, stdin=subprocess.DEVNULL, timeout=60)  # fmt: skip
    return ran.returncode, ran.stderr


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a run that is over."""
    make_run(tmp_path / "run").release()
    return tmp_path / "run"


def test_no_run(tmp_path: Path) -> None:
    """As every verb."""
    code, said = verb(tmp_path)
    assert (code, said.count("\n")) == (3, 1)
    assert "no run under runs" in said


def test_a_theme_that_is_none(finished: Path) -> None:
    """Names those there are."""
    code, said = verb(finished.parent, "--run", str(finished), "--theme", "mauve")
    assert code == 2
    assert "no theme 'mauve'" in said
    assert "nord" in said


def test_a_key_map_with_a_mistake(finished: Path) -> None:
    """One line, with the nearest name, before anything is drawn."""
    (finished.parent / "keys.toml").write_text('[services]\nrestrat = "x"\n')
    code, said = verb(finished.parent, "--run", str(finished), MIDFLIGHT_KEYS=str(finished.parent / "keys.toml"))
    assert code == 1
    assert said.count("\n") == 1
    assert "did you mean 'services.restart'" in said


def test_write_and_read_only_exclude_each_other(finished: Path) -> None:
    """A usage error."""
    assert verb(finished.parent, "--run", str(finished), "--write", "--read-only")[0] == 2


@pytest.mark.parametrize(("write", "flag"), [(False, "--read-only"), (True, "--write")])
def test_the_web_is_read_only_unless_told(write: bool, flag: str) -> None:
    """What is started for each visitor, whatever the path of the run is."""
    words = shlex.split(web.command(Path("/runs/a b;c"), write, "nord"))
    assert words[4:] == ["tui", "--run", "/runs/a b;c", flag, "--theme", "nord"]
    assert web.HOST == "127.0.0.1"


def test_the_web_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what to install."""
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(UserMistake, match=r"midflight\[web\]"):
        web.serve(Path("/run"), 1, False, "")


def test_the_page_shows_every_scene() -> None:
    """Each picture of docs/tui.md is a scene under its caption, and the other way round."""
    page = (ROOT / "docs/tui.md").read_text()
    shown = {name: caption for caption, name in re.findall(r"!\[([^]]*)\]\(pictures/([\w-]+)\.png\)", page)}
    assert shown == {name: scene.caption for name, scene in SCENES.items()}
    assert {path.stem for path in (ROOT / "docs/pictures").glob("*.png")} == set(SCENES)


@pytest.mark.parametrize(
    ("host", "origin", "ours"),
    [
        ("127.0.0.1:8422", None, True),
        ("127.0.0.1:8422", "http://127.0.0.1:8422", True),
        ("localhost:9000", "http://localhost:9000", True),
        ("127.0.0.1:8422", "https://evil.example", False),
        ("127.0.0.1:8422", "http://127.0.0.1:9999", False),
        ("127.0.0.1:8422", "null", False),
        ("evil.example:8422", "http://evil.example:8422", False),
        ("", None, False),
    ],
)
def test_other_pages_of_the_browser_cannot_speak_to_it(host: str, origin: str | None, ours: bool) -> None:
    """Neither by a request across sites nor by a name of theirs that points here."""
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    assert web.is_ours(headers) is ours


def test_the_server_answers_its_own_page_alone(finished: Path) -> None:
    """A real server on a free port of 127.0.0.1: the page, and a refusal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*VERB, "tui", "--run", str(finished), "--web", "--port", str(port)]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            assert asked(port, f"127.0.0.1:{port}") == 200
            assert asked(port, "evil.example") == 403
        finally:
            server.terminate()


def asked(port: int, host: str) -> int:
    """Status of the page; waits until the server is there."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": host})
            return connection.getresponse().status
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            connection.close()


def test_no_terminal(finished: Path) -> None:
    """A pipe gets one line, not escape sequences."""
    code, said = verb(finished.parent, "--run", str(finished))
    assert (code, said) == (2, "midflight tui: this is no terminal; --web shows the run in a browser\n")


def test_the_terminal_ui_stays_light(tmp_path: Path) -> None:
    """Nobody waits for torch to look at a run; the verb's options need not even textual."""
    heavy = ("torch", "transformers", "mlflow", "wandb", "numpy")
    for module, unwanted in (("midflight.tui.app", heavy), ("midflight.tui.main", (*heavy, "textual"))):
        code = f"import {module}, sys; print([name for name in {unwanted!r} if name in sys.modules])"
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert ran.stdout == "[]\n"
