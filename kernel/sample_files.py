"""RUN/samples: a few whole groups of each training step, token by token, for people to look at.

    write_step(run, StepSamples(step=41, version=40, groups=[Group(...)]))
    for step in list_steps(run):
        samples = read_step(run, step)

One file a step, `samples/step-00000041.msgpack`: a msgpack map of `format`, `crc32` and `body`, where the body is the
msgpack of `StepSamples` with its columns as little-endian float32. Written beside and renamed, so a reader sees whole
files only; not synced to disk, for losing the newest ones to a power cut costs nothing.
"""

import contextlib
import itertools
import os
import re
import sys
from array import array
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgpack

from .mistake import UserMistake

FORMAT: Final = 1
COLUMNS: Final = ("advantage", "entropy", "logprob", "behaviour", "gap", "mask", "version", "kl")
"""Columns in the order people read them; `kl` only where there is a reference policy."""
UNWRITTEN: Final = -1.0
"""The version of a token that no policy wrote."""
_NAME: Final = re.compile(r"step-(\d{8,})\.msgpack")


class SampleFileError(UserMistake):
    """There are no samples of this step, or their file is damaged; the text names it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response. `columns`: one number a token, by name, each as long as `tokens`.

    answer: the reference answer of the prompt, empty when not known. reward: weighed, as trained on; rewards: by name.
    finish: stop, length, context or max_turns. turns: times the model spoke. lag: optimizer steps that its oldest token
    lagged behind. tokens: pieces of text, which together are the response with its special tokens.
    Nats: logprob (of the policy when it was trained), behaviour (of the policy that wrote the token), gap (logprob
    - behaviour), entropy, kl (k3 against the reference). mask: 1 where the token was trained on; version: of the
    policy that wrote it. Where the policy wrote nothing (a tool's text) all are 0, version -1.
    """

    id: int
    text: str
    answer: str
    reward: float
    rewards: dict[str, float]
    advantage_mean: float
    finish: str
    lag: int
    tokens: list[str]
    columns: dict[str, list[float]]
    turns: int = 1

    def spoken(self) -> list[tuple[bool, str]]:
        """What the policy wrote (True) and what it was told in between (False), in order, special tokens included."""
        wrote = [version != UNWRITTEN for version in self.columns.get("version", [0.0] * len(self.tokens))]
        parts = itertools.groupby(zip(wrote, self.tokens, strict=True), key=lambda pair: pair[0])
        return [(own, "".join(token for _, token in some)) for own, some in parts]


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt, which is told as the model read it and as messages `{role, content}`.

    A learner knows its tokens only, and says it in one message of a user.
    """

    prompt_id: int
    prompt: str
    messages: list[dict[str, Any]]
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What is kept of one training step. version: the newest policy version when it was trained."""

    step: int
    version: int
    groups: list[Group]


def folder_of(run_dir: str | os.PathLike[str]) -> Path:
    """Where a run keeps them."""
    return Path(run_dir) / "samples"


def list_steps(run_dir: str | os.PathLike[str]) -> list[int]:
    """Every step that has samples, in order."""
    try:
        names = os.listdir(folder_of(run_dir))
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def read_step(run_dir: str | os.PathLike[str], step: int) -> StepSamples:
    """The samples of a step. Raises SampleFileError."""
    path = _path(run_dir, step)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SampleFileError(f"{path}: there are no samples of step {step}") from None
    except OSError as error:
        raise SampleFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _decode(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SampleFileError(f"{path}: damaged, or not a sample file: {error}") from error


def write_step(run_dir: str | os.PathLike[str], samples: StepSamples) -> Path:
    """Write the samples of a step, in place of what was there. Raises OSError, leaving nothing half-written."""
    path = _path(run_dir, samples.step)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(_encode(samples))
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return path


def remove_steps(run_dir: str | os.PathLike[str], steps: list[int]) -> None:
    """Remove the files of these steps; those that are gone already do not matter."""
    for step in steps:
        _path(run_dir, step).unlink(missing_ok=True)


def _path(run_dir: str | os.PathLike[str], step: int) -> Path:
    return folder_of(run_dir) / f"step-{step:08d}.msgpack"


def _encode(samples: StepSamples) -> bytes:
    groups = [{**_fields(group), "samples": [_packed(sample) for sample in group.samples]} for group in samples.groups]
    body = msgpack.packb({"step": samples.step, "version": samples.version, "groups": groups})
    return bytes(msgpack.packb({"format": FORMAT, "crc32": crc32(body), "body": body}))


def _packed(sample: Sample) -> dict[str, Any]:
    return {**_fields(sample), "columns": {name: _floats(values) for name, values in sample.columns.items()}}


def _fields(one: Group | Sample) -> dict[str, Any]:
    """By name, nothing copied."""
    return {field.name: getattr(one, field.name) for field in fields(one)}


def _decode(data: bytes) -> StepSamples:
    """Raises ValueError, TypeError, KeyError or AttributeError for what `_encode` did not write."""
    outer = msgpack.unpackb(data)
    if outer["format"] != FORMAT:
        raise ValueError(f"format {outer['format']}, where {FORMAT} is understood")
    if crc32(outer["body"]) != outer["crc32"]:
        raise ValueError("the checksum does not fit")
    body = msgpack.unpackb(outer["body"])
    return StepSamples(body["step"], body["version"], [_group(group) for group in body["groups"]])


def _group(found: dict[str, Any]) -> Group:
    return Group(**{**found, "samples": [_sample(sample) for sample in found["samples"]]})


def _sample(found: dict[str, Any]) -> Sample:
    columns = {name: _numbers(packed) for name, packed in found["columns"].items()}
    for name, values in columns.items():
        if len(values) != len(found["tokens"]):
            raise ValueError(f"{len(values)} entries in {name} for {len(found['tokens'])} tokens")
    return Sample(**{**found, "columns": columns})


def _floats(values: list[float]) -> bytes:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _numbers(packed: bytes) -> list[float]:
    values = array("f", packed)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
