import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.services.tracker import MetricsLog, Record, read_from
from midflight.services.tracker.jsonl import encode
from midflight.services.tracker.points import parameters, points


def _record(step: int) -> Record:
    return {"seq": step, "ts": 1.5, "source": "learner#1", "step": step, "values": {"reward": step / 8}}


def test_what_is_appended_is_read_from_any_offset(tmp_path: Path) -> None:
    """Records come back in order; reading can go on at the offset after any record; an unfinished line waits."""
    path = tmp_path / "metrics.jsonl"
    assert read_from(path, 0).records == []
    log = MetricsLog(path)
    assert log.last is None
    assert all(log.append(_record(step)) for step in range(5))
    with path.open("ab") as file:
        file.write(b'{"step": 5')
    batch = read_from(path, 0)
    assert batch.records == [_record(step) for step in range(5)]
    assert read_from(path, batch.offsets[2]).records == [_record(3), _record(4)]
    assert read_from(path, batch.end).records == []
    small = read_from(path, 0, most=10)
    assert (small.records, small.more) == ([_record(0)], True)


@given(cut=st.integers(0, 400), steps=st.integers(1, 4))
def test_a_torn_last_line_is_cut_off(cut: int, steps: int) -> None:
    """Cut anywhere, the file keeps its whole records; the next one follows them on a line of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        lines = [encode(_record(step)) for step in range(steps)]
        path.write_bytes(b"".join(lines)[:cut])
        whole = [_record(step) for step in range(steps) if len(b"".join(lines[: step + 1])) <= cut]
        log = MetricsLog(path)
        assert log.last == (whole[-1] if whole else None)
        assert log.append(_record(9))
        log.close()
        assert read_from(path, 0).records == [*whole, _record(9)]


def test_a_bad_line_is_counted_and_passed_over(tmp_path: Path) -> None:
    """Lines that are no objects do not stop the reader, nor hide the newest numbered record from the writer."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encode(_record(1)) + b"rubbish\n[1]\n")
    batch = read_from(path, 0)
    assert (batch.records, batch.bad, batch.end) == ([_record(1)], 2, path.stat().st_size)
    log = MetricsLog(path)
    assert log.last == _record(1)
    log.append({"event": "end"})
    assert log.last == MetricsLog(path).last == _record(1)


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    """An offset beyond the end means another file: an error, not silence."""
    (tmp_path / "metrics.jsonl").write_bytes(encode(_record(1)))
    with pytest.raises(ValueError, match="it was replaced"):
        read_from(tmp_path / "metrics.jsonl", 1000)


def test_a_full_disk_costs_counted_records_and_nothing_else(tmp_path: Path) -> None:
    """Without room, append says False and leaves whole lines; with room again, the gap is noted in the file.

    A limit on the file's size stands for the full disk: both make write() short or refused.
    """
    script = """
import resource, sys
from pathlib import Path
from midflight.services.tracker import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
record = {"step": 1, "ts": 2.0, "source": "x", "values": {"a": 1.0}}
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
taken = [log.append(record) for _ in range(6)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(taken, log.dropped, log.append(record))
"""
    path = tmp_path / "metrics.jsonl"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / ".pkg")}
    out = subprocess.run([sys.executable, "-c", script, path], env=env, capture_output=True, text=True, check=True)
    assert out.stdout == "[True, True, True, False, False, False] 3 True\n"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record.get("event") for record in records] == [None, None, None, "dropped", None]
    assert records[3]["values"] == {"records": 3}


def test_numbers_that_json_lacks_come_back_as_numbers(tmp_path: Path) -> None:
    """NaN and infinity survive the file, which stays strict JSON."""
    line = encode({"ts": 1.0, "source": "learner#2", "values": {"a": float("nan"), "b": float("-inf"), "c": 2}})
    record = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    found = points(record)
    assert found["learner/a"] != found["learner/a"]
    assert (found["learner/b"], found["learner/c"]) == (float("-inf"), 2.0)


def test_what_backends_see() -> None:
    """Metrics are named by service, knob changes are hp/..., parameters stay apart, texts are no numbers."""
    assert points({"source": "rollout-0#3", "values": {"tokens": 5, "note": "x", "ok": True}}) == {
        "rollout-0/tokens": 5.0,
        "rollout-0/ok": 1.0,
    }
    assert points({"event": "knob", "values": {"knob": "kl.coef", "value": 0.2}}) == {"hp/kl.coef": 0.2}
    params: Record = {"event": "params", "values": {"optim.lr": 1e-3}}
    assert (points(params), parameters(params)) == ({}, {"optim.lr": 1e-3})
    assert points({"event": "note"}) == {}
