"""The wire: every kind survives the trip, and nothing hostile survives decoding."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.schema import strategy

from midflight.messages.base import Bulk, Message
from midflight.messages.catalogue import CATALOGUE
from midflight.messages.tensors import ITEM_BYTES, Column
from midflight.messages.wire import (
    MAX_BODY,
    MAX_BUFFER,
    REASONS,
    Received,
    Sealer,
    WireError,
    decode,
    dump,
    is_reject,
    reject_frame,
)

GOLDEN = Path(__file__).with_name("golden.json")


def seal(kind: type[Message], body: dict[str, Any]) -> list[bytes]:
    """Frames of one message; the buffers of a bulk message are zeros of the described size."""
    body = dict(body)
    tensors = body.pop("tensors", None)
    columns = [(t["name"], t["dtype"], bytes(ITEM_BYTES[t["dtype"]] * t["shape"][0])) for t in tensors or []]
    return Sealer("rollout-0#1").seal(kind.KIND, body, columns=columns)[1]


def bodies(kind: type[Message]) -> st.SearchStrategy[dict[str, object]]:
    """Any body of a kind that the model allows."""
    schema = kind.model_json_schema()
    return strategy(schema, schema.get("$defs", {}))


@pytest.mark.parametrize("kind", [k for k in CATALOGUE.values() if not issubclass(k, Bulk)], ids=lambda k: k.KIND)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_decode_of_encode_is_the_message(kind: type[Message], data: st.DataObject) -> None:
    """decode(encode(m)) == m for every kind without buffers."""
    message = kind.model_validate(data.draw(bodies(kind)))
    _, frames = Sealer("learner#3").seal(kind.KIND, dump(message))
    assert decode(frames).message == message


COLUMNS = st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.binary(max_size=64)), max_size=16)


def named(columns: list[tuple[str, bytes]]) -> list[Column]:
    """Columns c0, c1, ... cut to whole items."""
    return [(f"c{i}", d, b[: len(b) // ITEM_BYTES[d] * ITEM_BYTES[d]]) for i, (d, b) in enumerate(columns)]


@pytest.mark.parametrize("kind", [k for k in CATALOGUE.values() if issubclass(k, Bulk)], ids=lambda k: k.KIND)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), columns=COLUMNS)
def test_decode_of_encode_is_the_bulk_message(
    kind: type[Bulk], data: st.DataObject, columns: list[tuple[str, bytes]]
) -> None:
    """The same for every kind with buffers: the body, the descriptors and every byte of the arrays."""
    body = data.draw(bodies(kind)) | {"tensors": []}
    message = kind.model_validate(body)
    sent = dump(message) | {"tensors": []}
    received = decode(Sealer("rollout-0#1").seal(kind.KIND, sent, columns=named(columns))[1])
    assert received.message.model_copy(update={"tensors": []}) == message
    assert {name: bytes(view) for name, view in received.views().items()} == {n: b for n, _, b in named(columns)}


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda k: k.KIND)
def test_every_example_survives_the_trip(kind: type[Message]) -> None:
    """The example of every kind, bulk kinds with their buffers, comes back equal."""
    received = decode(seal(kind, kind.EXAMPLE))
    assert received.message == kind.model_validate(kind.EXAMPLE)


def test_views_are_read_only() -> None:
    """Nobody writes into a message that was received."""
    views = decode(Sealer("a#1").seal("tickets", {"tickets": []}, columns=[("c0", "<i4", bytes(8))])[1]).views()
    assert all(view.readonly for view in views.values())


def test_golden_bytes() -> None:
    """Protocol 1 of every kind, byte for byte: a change here is a change of the protocol.

    After a deliberate change: MIDFLIGHT_WRITE_GOLDEN=1 make test writes it anew.
    """
    made = {}
    for name, kind in sorted(CATALOGUE.items()):
        frames = seal(kind, kind.EXAMPLE)
        head = msgpack.unpackb(frames[0][1:])
        head["ts"] = 0
        made[name] = [(frames[0][:1] + msgpack.packb(head)).hex(), *(frame.hex() for frame in frames[1:])]
    if os.environ.get("MIDFLIGHT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(made, indent=0))
    assert made == json.loads(GOLDEN.read_text())


def mutate(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """Flip, cut, insert, repeat or drop something."""
    out = [bytearray(frame) for frame in frames]
    for _ in range(rng.randint(1, 4)):
        victim = rng.choice(out) if out else bytearray()
        match rng.randrange(7):
            case 0 if victim:
                victim[rng.randrange(len(victim))] = rng.randrange(256)
            case 1 if victim:
                del victim[rng.randrange(len(victim)) :]
            case 2:
                victim[rng.randrange(len(victim) + 1) : 0] = rng.randbytes(rng.randint(1, 8))
            case 3 if out:
                out.pop(rng.randrange(len(out)))
            case 4:
                out.insert(rng.randrange(len(out) + 1), bytearray(rng.randbytes(rng.randint(0, 40))))
            case 5 if len(out) > 1:
                out[1] = bytearray(b"\x91" * rng.randint(1, 3000))
            case _:
                out.extend([bytearray(b"x")] * rng.randint(1, 20))
    return [bytes(frame) for frame in out]


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_mutated_messages_are_refused_by_reason(count: int) -> None:
    """Mutated messages never raise anything but WireError, and each refusal has one of the known reasons."""
    rng = random.Random(7)
    originals = [seal(kind, kind.EXAMPLE) for kind in CATALOGUE.values()]
    reasons: Counter[str] = Counter()
    for _ in range(count):
        try:
            assert isinstance(decode(mutate(rng, rng.choice(originals))), Received)
            reasons["valid"] += 1
        except WireError as error:
            reasons[error.reason] += 1
    assert set(reasons) <= {"valid", *REASONS}
    assert {"frames", "size", "major", "msgpack", "envelope", "body", "buffers"} <= set(reasons)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (msgpack.packb({"mode": "drain", "why": "x", "extra": 1}), "body"),
        (msgpack.packb({"mode": "drain", "why": 7}), "body"),
        (msgpack.packb({b"mode": "drain"}), "body"),
        (msgpack.packb({"mode": "drain", "why": float("nan")}), "body"),
        (b"\x91" * 2000, "msgpack"),
        (b"\xdd\xff\xff\xff\xff", "msgpack"),
        (b"\xa2\xff\xfe", "msgpack"),
        (b"\x80" * (MAX_BODY + 1), "size"),
        (b"", "size"),
    ],
)
def test_hostile_bodies(frame: bytes, reason: str) -> None:
    """Wrong types, unknown keys, NaN, nesting bombs, false lengths and bad UTF-8 are refused with their reason."""
    head = Sealer("a#1").seal("run.stop", {"mode": "drain", "why": "x"})[1][0]
    with pytest.raises(WireError) as caught:
        decode([head, frame])
    assert caught.value.reason == reason


def test_a_buffer_beyond_the_limit_is_refused_before_it_is_sent() -> None:
    """A socket would drop the peer without a word; the sender learns it first."""
    with pytest.raises(WireError, match="at most"):
        Sealer("a#1").seal("tickets", {"tickets": []}, columns=[("rows", "|u1", bytes(MAX_BUFFER + 1))])


def test_an_array_larger_than_its_frame_is_refused() -> None:
    """A descriptor cannot point outside the bytes that came."""
    frames = seal(CATALOGUE["tickets"], CATALOGUE["tickets"].EXAMPLE)
    with pytest.raises(WireError, match="buffers"):
        decode([*frames[:2], b"\0"])


def test_a_newer_minor_may_add_fields_and_an_equal_one_may_not() -> None:
    """Unknown optional fields are dropped only when the sender is newer; typos never pass."""
    frames = Sealer("a#1").seal("welcome", {"proto": 1, "boot": "b", "heartbeat_s": 1.0, "later": 3})[1]
    with pytest.raises(WireError, match="body"):
        decode(frames)
    head = msgpack.unpackb(frames[0][1:])
    newer = b"\x01" + msgpack.packb({**head, "v": 1})
    assert decode([newer, frames[1]]).message.model_dump()["boot"] == "b"


def test_reject_is_the_one_fixed_format() -> None:
    """A peer of another major gets one frame: zero byte and a map of strings."""
    assert is_reject([reject_frame()])
    assert msgpack.unpackb(reject_frame()[1:]) == {"supported": "1"}
