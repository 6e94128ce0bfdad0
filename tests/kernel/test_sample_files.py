"""RUN/samples: written and read back, in order, whole or not at all, and one clear error for what is damaged."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.kernel.sample_files import (
    Group,
    Sample,
    SampleFileError,
    StepSamples,
    list_steps,
    read_step,
    remove_steps,
    write_step,
)

COLUMNS = {"advantage": [0.5, 0.5], "logprob": [-0.25, -1.5], "mask": [1.0, 0.0], "version": [40.0, -1.0]}


def sample(id: int = 7, **changes: object) -> Sample:
    """A plausible response of two tokens, whose numbers float32 holds exactly."""
    fields = {
        "id": id, "text": "ab", "answer": "ba", "reward": 1.0, "rewards": {"exact": 1.0}, "advantage_mean": 0.5,
        "finish": "stop", "lag": 1, "tokens": ["a", "b"], "columns": COLUMNS,
    }  # fmt: skip
    return Sample(**(fields | changes))  # type: ignore[arg-type]


def of_step(step: int, *samples: Sample) -> StepSamples:
    """One group of them."""
    messages = [{"role": "user", "content": "reverse ba"}]
    return StepSamples(step, step - 1, [Group(3, "<|user|>reverse ba", messages, list(samples))])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Every field, of every sample; steps are listed in order, and a second writing replaces the first."""
    for step in (41, 7, 100_000_000):
        assert write_step(tmp_path, of_step(step, sample(step))).parent == tmp_path / "samples"
    assert list_steps(tmp_path) == [7, 41, 100_000_000]
    write_step(tmp_path, of_step(41, sample(1), sample(2)))
    assert read_step(tmp_path, 41) == of_step(41, sample(1), sample(2))
    assert read_step(tmp_path, 7) == of_step(7, sample(7))
    remove_steps(tmp_path, [7, 8])
    assert list_steps(tmp_path) == [41, 100_000_000]


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(width=32, allow_nan=False)), max_size=20))
def test_any_text_and_any_number_come_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, float]]
) -> None:
    """Pieces of any characters, and floats of 32 bits exactly."""
    folder = tmp_path_factory.mktemp("samples")
    written = of_step(1, sample(tokens=[t for t, _ in pairs], columns={"entropy": [x for _, x in pairs]}))
    write_step(folder, written)
    assert read_step(folder, 1) == written


def test_a_step_without_samples(tmp_path: Path) -> None:
    """An empty list for a run without the folder, and an error that names the step."""
    assert list_steps(tmp_path) == []
    with pytest.raises(SampleFileError, match="no samples of step 5"):
        read_step(tmp_path, 5)


def test_damage_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    """A changed bit in any byte and an end too early at any byte: never another exception, never other samples."""
    written = of_step(1, sample())
    path = write_step(tmp_path, written)
    data = path.read_bytes()
    for at in range(len(data)):
        for damaged in (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], data[:at]):
            path.write_bytes(damaged)
            with pytest.raises(SampleFileError, match=r"step-00000001\.msgpack: damaged"):
                read_step(tmp_path, 1)


def test_a_column_of_another_length_is_damage(tmp_path: Path) -> None:
    """What no writer of ours writes is not shown."""
    write_step(tmp_path, of_step(1, sample(tokens=["a"])))
    with pytest.raises(SampleFileError, match="2 entries in advantage for 1 tokens"):
        read_step(tmp_path, 1)


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is told; readers see what they saw."""
    write_step(tmp_path, of_step(1, sample(1)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_step(tmp_path, of_step(1, sample(2)))
    assert read_step(tmp_path, 1) == of_step(1, sample(1))
    assert len(list((tmp_path / "samples").iterdir())) == 1


def test_reading_needs_no_torch_and_no_numpy() -> None:
    """The terminal reads it too."""
    code = "import sys, midflight.kernel.sample_files; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
