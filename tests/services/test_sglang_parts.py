"""The parts of the SGLang backend that need no server: replies, jobs, request ids, command lines, configuration."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.sim import SimBus

from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.kernel.spec import LocatedStr
from midflight.messages.memory import Network
from midflight.messages.shm import CorruptSlot
from midflight.messages.weights import Handle, WeightsNew
from midflight.services.model.weights import read_weights, write_weights
from midflight.services.rollout.config import RolloutConfig
from midflight.services.rollout.forward import BadWeights
from midflight.services.rollout.request import Request
from midflight.services.rollout.sglang import command
from midflight.services.rollout.sglang.config import SglangConfig
from midflight.services.rollout.sglang.job import Job
from midflight.services.rollout.sglang.line import request_id
from midflight.services.rollout.sglang.offered import NAME, check, forget
from midflight.services.rollout.sglang.reply import BadReply, Piece, parse, spread
from midflight.services.rollout.sglang.service import Sglang
from midflight.services.rollout.stopping import StopText


def reply(tokens: list[int], spans: list[tuple[str, int, int]], ending: str = "length") -> dict[str, Any]:
    """As `/generate` answers."""
    return {
        "output_ids": tokens,
        "meta_info": {
            "finish_reason": {"type": ending},
            "output_token_logprobs": [[-0.5, token, None] for token in tokens],
            "weight_versions": [{"version": v, "start": a, "end": b} for v, a, b in spans],
        },
    }


def look(reply: Any) -> Piece:
    """At a reply to a request for three tokens of a vocabulary of ten."""
    return parse(reply, 10, 3)


def test_spans_become_one_version_a_token() -> None:
    """Also an empty span, and a reply that was aborted before its first token."""
    assert spread([{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 2, "end": 3}], 3) == [3, 3, 4]
    assert look(reply([7, 8], [("5", 0, 0), ("6", 0, 2)], "stop")) == Piece([7, 8], [-0.5, -0.5], [6, 6], "stop")
    assert look({"output_ids": [], "meta_info": {"finish_reason": {"type": "abort"}, "output_token_logprobs": None}})


@pytest.mark.parametrize(
    "spans",
    [
        [("1", 0, 1)],
        [("1", 0, 3)],
        [("1", 0, 1), ("2", 0, 2)],
        [("1", 1, 2)],
        [("none", 0, 2)],
        [("-1", 0, 2)],
        [(float("inf"), 0, 2)],
        [("1", 0, float("inf"))],
        [("1", 0, 10**12)],
        [("1", False, 2)],
        [],
    ],
)
def test_spans_that_do_not_tile_the_tokens_are_refused(spans: Any) -> None:
    """Too few, too many, overlapping, with a gap, of no version of ours, no numbers, none."""
    with pytest.raises(BadReply):
        look(reply([7, 8], spans))


def test_log_probs_of_other_tokens_are_refused() -> None:
    """And a reply that is none."""
    wrong = reply([7, 8], [("1", 0, 2)])
    wrong["output_ids"] = [7, 9]
    for bad in (wrong, {}, {"output_ids": [1], "meta_info": {}}, reply([7], [("1", 0, 1)], "surprise")):
        with pytest.raises(BadReply):
            look(bad)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([10], r"token 10 lies outside the vocabulary \[0, 10\)"),
        ([-1], "token -1 lies outside"),
        ([10**12], "token 1000000000000 lies outside"),
        ([True], "'True' is no whole number"),
        ([7.0], "no whole number"),
        (["7"], "no whole number"),
        ([float("inf")], "no whole number"),
        ("7", "no whole number"),
        ([1, 2, 3, 4], "4 tokens, where 3 were asked for"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tokens: Any, why: str) -> None:
    """With the reason."""
    with pytest.raises(BadReply, match=why):
        look(reply(tokens, [("1", 0, len(tokens))]))


@pytest.mark.parametrize("scored", [[0.5, 7], [True, 7], [None, 7], ["-1", 7], [10**400, 7], [-1, float("inf")],
                                    [-1, True], [-1], -1])  # fmt: skip
def test_log_probs_that_cannot_be_are_refused(scored: Any) -> None:
    """Above 0, no numbers, of no token."""
    wrong = reply([7], [("1", 0, 1)])
    wrong["meta_info"]["output_token_logprobs"] = [scored]
    with pytest.raises(BadReply):
        look(wrong)


def test_a_log_prob_is_rounded_up_at_most() -> None:
    """What is certain may come out above 0 by a rounding error."""
    certain = reply([7], [("1", 0, 1)])
    certain["meta_info"]["output_token_logprobs"] = [[1e-6, 7]]
    assert look(certain).logprobs == [1e-6]


@pytest.mark.parametrize("field", ["weight_versions", "output_token_logprobs", "finish_reason"])
def test_what_is_null_is_refused(field: str) -> None:
    """Where there are tokens."""
    wrong = reply([7], [("1", 0, 1)])
    wrong["meta_info"][field] = None
    with pytest.raises(BadReply):
        look(wrong)


def test_only_what_was_aborted_may_have_no_tokens() -> None:
    """Such a sample would have no version."""
    assert look(reply([], [], "abort")).tokens == []
    for ending in ("stop", "length"):
        with pytest.raises(BadReply, match="no tokens"):
            look(reply([], [], ending))


def test_an_aborted_response_goes_on_from_where_it_stands() -> None:
    """The prompt of the next request is what there is, for what is missing; versions are those of each piece."""
    job = Job(Request(1, [5, 6], 4, 1.0, 0), (1,), 256)
    assert job.extend(Piece([7, 8], [-1.0, -2.0], [3, 3], "abort")) is None
    body = job.body("r", None)
    assert body["input_ids"] == [5, 6, 7, 8]
    assert body["sampling_params"]["max_new_tokens"] == 2
    done = job.extend(Piece([9, 1], [-3.0, -4.0], [4, 4], "stop"))
    assert done
    assert (done.tokens, done.versions, done.stop_reason) == ([7, 8, 9, 1], [3, 3, 4, 4], "stop")


@pytest.mark.parametrize(("last", "reason"), [(1, "stop"), (9, "length")])
def test_an_aborted_response_that_lacks_nothing_is_done(last: int, reason: str) -> None:
    """Its last token ended it, or it had room for no other."""
    done = Job(Request(1, [5], 2, 1.0, 0), (1,), 256).extend(Piece([7, last], [-1.0, -2.0], [3, 3], "abort"))
    assert done
    assert done.stop_reason == reason


def test_a_stop_text_ends_a_response_where_it_is_complete() -> None:
    """In whatever piece it comes; what the server sampled beyond it is not there."""
    text = StopText(lambda ids: "".join(chr(one) for one in ids), ["ab"])
    job = Job(Request(1, [5], 9, 1.0, 0, stop=("ab",)), (1,), 256, text)
    assert job.extend(Piece([120, 97], [-1.0, -2.0], [3, 3], "abort")) is None
    done = job.extend(Piece([98, 99, 100], [-3.0, -4.0, -5.0], [4, 4, 4], "length"))
    assert done
    assert (done.tokens, done.logprobs, done.stop_reason) == ([120, 97, 98], [-1.0, -2.0, -3.0], "stop")
    assert done.versions == [3, 3, 4]


def test_log_probs_must_be_finite() -> None:
    """A job ends with an error rather than with NaN."""
    with pytest.raises(FloatingPointError, match="request 1"):
        Job(Request(1, [5], 2, 1.0, 0), (1,), 256).check(Piece([7], [float("nan")], [3], "length"))


def test_no_request_id_begins_with_another() -> None:
    """SGLang aborts by prefix."""
    ids = [request_id(sample) for sample in (1, 10, 0, 2**40, 1)]
    assert len(set(ids)) == len(ids)
    assert len({len(one) for one in ids}) == 1


def test_weights_are_checked_and_linked(tmp_path: Path) -> None:
    """Without a copy; wrong shapes, NaN and a changed byte are refused; old folders go, those in use stay."""
    links, shapes = tmp_path / "links", {"a": torch.Size([2]), "head": torch.Size([2])}
    handle = write_weights(tmp_path, 4, {"a": torch.ones(2)})
    new = WeightsNew(version=4, step=4, handle=handle)
    offered = check(new, shapes, {"head"}, links, keep=True)
    assert os.stat(offered.folder / NAME).st_ino == os.stat(handle.path).st_ino
    assert offered.tensors["a"].tolist() == [1.0, 1.0]
    assert read_weights(Handle.model_validate(handle.model_dump() | {"path": str(offered.folder / NAME)}))
    with pytest.raises(BadWeights, match="missing"):
        check(new, shapes, set(), links, keep=False)
    bad = write_weights(tmp_path, 5, {"a": torch.tensor([1.0, float("nan")])})
    with pytest.raises(BadWeights, match="not finite"):
        check(WeightsNew(version=5, step=5, handle=bad), shapes, {"head"}, links, keep=False)
    torn = handle.model_copy(update={"digest": "0" * 32})
    with pytest.raises(CorruptSlot):
        check(WeightsNew(version=6, step=6, handle=torn), shapes, {"head"}, links, keep=False)
    good = write_weights(tmp_path, 7, {"a": torch.ones(2)})
    check(WeightsNew(version=7, step=7, handle=good), shapes, {"head"}, links, keep=False)
    forget(links, {7})
    assert [path.name for path in links.iterdir()] == ["7"]


def test_command_lines() -> None:
    """On a CPU what the plug-in needs, on a GPU each server its own devices; extra arguments come last and win."""
    config, model = (
        SglangConfig(tp_size=2, slots=8, server_args=["--log-level", "info"]),
        command.Model("m", "bfloat16", 90),
    )
    cpu, gpu = (command.server(config, model, device, 31000, 3) for device in ("cpu", "cuda"))
    assert cpu[cpu.index("--attention-backend") + 1] == "torch_native"
    assert "--attention-backend" not in gpu
    assert gpu[gpu.index("--base-gpu-id") + 1] == "6"
    assert gpu[-2:] == ["--log-level", "info"]
    assert "--disable-overlap-schedule" not in gpu
    assert "--disable-overlap-schedule" in command.server(SglangConfig(pause="in_place"), model, "cuda", 31000, 0)
    env = command.environment("cpu", 2, {"PYTHONPATH": "x", "PATH": "/bin"})
    assert env["SGLANG_PLATFORM"] == command.PLATFORM
    assert "PYTHONPATH" not in env
    assert len(env["SGLANG_CPU_OMP_THREADS_BIND"].split("|")) == 2
    assert "SGLANG_PLATFORM" not in command.environment("cuda", 2, {})


def test_the_interpreter_is_named_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the field, the variable, or beside; else the error says how to get one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(command.PYTHON_ENV, raising=False)
    with pytest.raises(UserMistake, match=r"make \.venv-sglang"):
        command.interpreter(SglangConfig())
    monkeypatch.setenv(command.PYTHON_ENV, "/bin/true")
    assert command.interpreter(SglangConfig()) == "/bin/true"
    assert command.interpreter(SglangConfig(python="/bin/false")) == "/bin/false"
    with pytest.raises(UserMistake, match="no interpreter at"):
        command.interpreter(SglangConfig(python="/nowhere/python"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"urls": ["http://a", "HTTP://A/"]}, "twice"),
        ({"urls": ["http://a"], "servers": 2}, "leave them or urls out"),
        ({"urls": ["http://a", "http://a"]}, "twice"),
        ({"api_key_env": "KEY"}, "at urls"),
        ({"router": True, "pause": "in_place"}, "router does not know"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], why: str) -> None:
    """One clear sentence each."""
    with pytest.raises(ValidationError, match=why):
        SglangConfig.model_validate(fields)


def test_two_rollouts_may_not_command_the_same_servers() -> None:
    """Neither two slots nor two replicas."""
    config = SglangConfig(urls=["http://a"], replicas=2)
    others = {"other": SglangConfig(urls=["http://a", "http://b"]), "plain": RolloutConfig()}
    assert [field for field, _ in config.conflicts(others)] == ["replicas", "urls"]
    assert config.part == "rollout"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("foo", "'foo' does not begin with http://"),
        ("", "does not begin with http://"),
        ("ftp://a", "'ftp://a' does not begin"),
        ("http://", "no address of a server"),
        ("http://[::1", r"'http://\[::1' is no address"),
        ("http://[1::2::3]", "no IP address"),
        ("http://999.1.1.1", "no IP address"),
        ("http://1a2b3c4", "no IP address"),
        ("http://a:port", "no address of a server"),
        ("http://a:", "no address of a server"),
        ("http://a:0", "port 0 is not in 1 to 65535"),
        ("http://a:65536", "port 65536 is not in"),
        ("http://a/../b", "no parts of its path"),
        ("http://a/x?y", "no address of a server"),
        ("http://a#x", "no address of a server"),
        ("http://a b", "no address of a server"),
        ("http://a\n", "no address of a server"),
        (" http://a", "does not begin"),
        ("http://\u00e9", "no address of a server"),
        ("http://user:secret@a", r"\.\.\.@a: no user or password"),
    ],
)
def test_what_is_no_address_of_a_server_is_told_with_it(url: str, why: str) -> None:
    """And a password is not."""
    with pytest.raises(ValidationError, match=why) as error:
        SglangConfig(urls=[url])
    assert error.value.errors()[0]["loc"] == ("urls", 0)
    assert "secret" not in str(error.value)


def test_addresses_have_one_spelling() -> None:
    """A path before all others is kept."""
    urls = ["http://Host-1.example:3000/", "HTTPS://[::1]:8/a/b_c", "http://10.0.0.1", "http://my_host/x.y/"]
    expected = ["http://host-1.example:3000", "https://[::1]:8/a/b_c", "http://10.0.0.1", "http://my_host/x.y"]
    assert SglangConfig(urls=urls).urls == expected


def test_a_topology_names_a_variable_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where midflight is started or in `env`; what was resolved once is read back without that."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    written, urls = LocatedStr("SOME_KEY", "/"), ["http://a"]
    with pytest.raises(ValidationError, match="SOME_KEY is not set") as error:
        SglangConfig.model_validate({"urls": urls, "api_key_env": written})
    assert error.value.errors()[0]["loc"] == ("api_key_env",)
    assert SglangConfig(urls=urls, api_key_env="SOME_KEY").api_key_env == "SOME_KEY"
    assert SglangConfig(urls=urls, api_key_env=written, env={"SOME_KEY": "k"}).api_key_env == "SOME_KEY"
    monkeypatch.setenv("SOME_KEY", "k")
    assert SglangConfig(urls=urls, api_key_env=written).api_key_env == "SOME_KEY"


def test_a_key_or_an_interpreter_that_is_not_there_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings have no model to load."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    keyed, launched = SglangConfig(urls=["http://a"], api_key_env="SOME_KEY"), SglangConfig(python="/nowhere/python")
    for config, why in ((keyed, "SOME_KEY is not set"), (launched, "no interpreter at")):
        settings = Settings(
            run_dir=tmp_path, run_id="r", name="rollout", slot="rollout", entry=config.entry, config=config, model={},
            seed=0, python_path=(), endpoints={}, shm_dir=tmp_path, kinds={"rollout": "sglang"},
        )  # fmt: skip
        with pytest.raises(UserMistake, match=why):
            Sglang("rollout#1", SimBus(Network(0, {"ctl": "kernel#0"}), "rollout#1"), settings).start()
