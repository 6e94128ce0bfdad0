"""A server that somebody else started with a key: it is read from the variable that is named, and shown nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sglang_fleet import Fleet, Lone, ask

from midflight.kernel.mistake import UserMistake

NEAR = 1e-4
KEY = "k-3f9c1d7e5b"
WRONG = "w-8a2e4c6f0d"
VARIABLE = "TEST_SGLANG_KEY"


@pytest.fixture(scope="module")
def locked(python: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lone]:
    """A server with a key, read from a file: SGLang has no variable for it, and arguments are for all to see."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "sglang.yaml").write_text(f"api-key: {KEY}\n")
    with Lone(python, model, folder, "--config", str(folder / "sglang.yaml")) as server:
        yield server


def shown(folder: Path, fleet: Fleet, *texts: str) -> str:
    """All that anybody can read of it."""
    logs = [path.read_text(errors="replace") for path in folder.rglob("*.log")]
    return "\n".join([*logs, *fleet.said, *texts, repr(fleet.config)])


def test_with_the_key_it_generates_and_takes_weights(
    locked: Lone, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP alone: pause, weights, generation, load; and the key stays where it was."""
    monkeypatch.setenv(VARIABLE, KEY)
    assert ask(locked.url + "/model_info") == 0, "the server asks for no key"
    with Fleet(model, tmp_path, urls=[locked.url], transfer="tensor", api_key_env=VARIABLE) as fleet:
        fleet.begin()
        fleet.add(8, new=90)
        fleet.finish(1)
        fleet.load(1)
        fleet.until(lambda: fleet.servers.kv_use > 0 or len(fleet.done) == 8)
        fleet.finish(8)
        assert max(map(fleet.gap, fleet.done.values())) < NEAR
        assert KEY not in shown(tmp_path, fleet)


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [(VARIABLE, WRONG, f"does not accept the key that {VARIABLE} holds"), (None, "", "wants a key"),
     (VARIABLE, "", f"{VARIABLE} is not set"), (VARIABLE, "a\nb", "no key")],
)  # fmt: skip
def test_without_the_right_key_there_is_one_clear_error(
    locked: Lone, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    """At the first answer, and no attempts after it."""
    monkeypatch.setenv(VARIABLE, value)
    with (
        pytest.raises(UserMistake, match=why) as error,
        Fleet(model, tmp_path, urls=[locked.url], api_key_env=variable) as fleet,
    ):
        fleet.until(lambda: False, 60.0)
    for secret in (KEY, WRONG):
        assert secret not in str(error.value)
        assert secret not in repr(error.value.__cause__)
