"""Checkpoints are whole or absent: under SIGKILL, a full disk, bit flips, truncation, and pruning."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import save_files

from midflight.services.learner.checkpoints import checkpoint, durable
from midflight.services.learner.checkpoints.checkpoint import (
    NOTHING,
    CheckpointError,
    UnusableCheckpoint,
    latest_verified,
    prune,
    steps,
    sweep,
    to_go_on_from,
    verify,
)

SIZE = 3 << 20
"""Bytes of the larger file: several blocks, so that a kill can fall inside it."""

SAVER = """
import sys
from pathlib import Path
from midflight.services.learner.checkpoints import failpoint
from midflight.services.learner.checkpoints.checkpoint import CheckpointError
from midflight.services.learner.checkpoints.saving import Share, save
root, first, last, size = Path(sys.argv[1]), *map(int, sys.argv[2:5])
for step in range(first, last + 1):
    try:
        save(root, step, Share({"a.bin": [bytes([step]) * size], "b.json": [b"{}"]}), {"ledger": step})
    except CheckpointError as error:
        sys.exit(f"refused: {error}")
print(next(failpoint._passed))
"""


def run_saver(root: Path, first: int, last: int, size: int = SIZE, crash_at: int | None = 10**9) -> tuple[int, str]:
    """Save steps first..last in a child, which dies at the given failpoint; (exit code, its output)."""
    env = {"PYTHONPATH": ".pkg", "PATH": os.environ["PATH"], "MIDFLIGHT_FAILPOINT": str(crash_at)}
    command = [sys.executable, "-c", SAVER, str(root), str(first), str(last), str(size)]
    home = Path(__file__).parents[2]
    child = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=60)
    return child.returncode, (child.stdout + child.stderr).strip()


def put(root: Path, step: int, content: bytes = b"weights") -> Path:
    save_files(root, step, {"a.bin": [content, content], "b.json": [b"[1]"]}, {"step": step}, keep=99)
    return root / checkpoint.step_name(step)


def test_a_sigkill_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """SIGKILL at 20 seeded points of 3 saves: the newest directory verifies, at most one save is lost, sweep cleans."""
    code, points = run_saver(tmp_path / "count", 1, 3)
    assert code == 0
    rng = random.Random(7)
    for trial, point in enumerate(rng.sample(range(1, int(points)), 20)):
        root = tmp_path / str(trial)
        code, _ = run_saver(root, 1, 3, crash_at=point)
        assert code == -9
        found = latest_verified(root)
        assert found.skipped == ()
        names = [p.name for p in steps(root)]
        if found.path is not None and found.manifest is not None:
            assert found.path.name == names[0]
            assert found.manifest.extra == {"ledger": found.manifest.step}
        done = 0 if found.manifest is None else found.manifest.step
        assert done in {(point - 1) * 3 // int(points) + d for d in (-1, 0, 1)}
        sweep(root)
        assert [p.name for p in steps(root)] == names
        assert not list(root.glob(".*"))
        assert run_saver(root, done + 1, done + 1)[0] == 0
        assert latest_verified(root).manifest == verify(root / checkpoint.step_name(done + 1))
        shutil.rmtree(root)


def test_replacing_a_step_survives_a_sigkill(tmp_path: Path) -> None:
    """Saving an existing step again, killed at every point: after sweep that step verifies, old or new."""
    run_saver(tmp_path / "count", 1, 1, size=10)
    code, points = run_saver(tmp_path / "count", 1, 1, size=20)
    assert code == 0
    for point in range(1, int(points)):
        root = tmp_path / str(point)
        put(root, 1, b"old")
        assert run_saver(root, 1, 1, size=20, crash_at=point)[0] == -9
        sweep(root)
        assert verify(root / "step-00000001").extra in ({"step": 1}, {"ledger": 1})
        assert not list(root.glob(".*"))


@pytest.mark.parametrize("name", ["a.bin", "b.json", "manifest.json"])
def test_any_flipped_bit_or_missing_byte_is_found(tmp_path: Path, name: str) -> None:
    """One bit or the last byte of any file of the newest step: it is passed over, by name, for the one before."""
    older, newer = put(tmp_path, 1), put(tmp_path, 2)
    good = (newer / name).read_bytes()
    rng = random.Random(name)
    flips = [(rng.randrange(len(good)), 1 << rng.randrange(8)) for _ in range(40)]
    damaged = [bytes(b ^ bit if i == at else b for i, b in enumerate(good)) for at, bit in flips]
    for content in [*damaged, good[:-1], b"", good + b" "]:
        if name == "manifest.json" and _same_json(content, good):
            continue
        (newer / name).write_bytes(content)
        found = latest_verified(tmp_path)
        assert found.path == older
        assert len(found.skipped) == 1
        assert newer.name in found.skipped[0]
    (newer / name).unlink()
    assert latest_verified(tmp_path).path == older
    (newer / name).write_bytes(good)
    assert latest_verified(tmp_path).path == newer


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_a_step_under_another_name_or_format_is_refused(tmp_path: Path) -> None:
    """A renamed directory, an unknown format and a path outside the directory do not verify."""
    path = put(tmp_path, 3)
    moved = path.rename(tmp_path / "step-00000004")
    with pytest.raises(CheckpointError, match="its directory"):
        verify(moved)
    body = json.loads((moved / "manifest.json").read_text())
    for change, complaint in (({"format": 99}, "format 99"), ({"files": {"../x": body["files"]["a.bin"]}}, "digest")):
        (moved / "manifest.json").write_text(json.dumps(body | change))
        with pytest.raises(CheckpointError, match=complaint):
            verify(moved)
    (tmp_path / "x").write_bytes(b"weightsweights")
    inner = {k: v for k, v in body.items() if k != "digest"} | {"step": 4, "files": {"../x": body["files"]["a.bin"]}}
    (moved / "manifest.json").write_text(json.dumps(inner | {"digest": checkpoint._digest(inner)}))
    with pytest.raises(CheckpointError, match="differs"):
        verify(moved)


def test_a_full_disk_leaves_the_old_one_intact(tmp_path: Path) -> None:
    """On a 1 MiB file system the second save fails with ENOSPC: one clear line, the first still verifies."""
    script = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    home = Path(__file__).parents[2]
    env = {"PYTHONPATH": ".pkg", "PATH": os.environ["PATH"]}
    check = SAVER + "\n"
    check = check.replace("sys.exit(f", "print(f").replace(
        "print(next(failpoint._passed))",
        "from midflight.services.learner.checkpoints.checkpoint import latest_verified\n"
        "print(latest_verified(root).path.name, [p.name for p in root.iterdir()])",
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", check]
    arguments = [str(tmp_path / "root"), "1", "2", str(600 << 10)]
    try:
        child = subprocess.run(command + arguments, env=env, cwd=home, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if "permitted" in child.stderr or "denied" in child.stderr:
        pytest.skip("this machine allows no user namespace")
    assert "refused: cannot write checkpoint" in child.stdout, child.stderr
    assert "No space left on device" in child.stdout
    assert child.stdout.splitlines()[-1] == "step-00000001 ['step-00000001']"


def test_an_unwritable_extra_leaves_no_trace(tmp_path: Path) -> None:
    """NaN in `extra` is not JSON: refused, and the temporary directory is gone."""
    put(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        save_files(tmp_path, 2, {"a.bin": [b"x"]}, {"knob": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_counts_verified_steps_only(tmp_path: Path) -> None:
    """keep=2 keeps the newest two that verify and everything newer; a broken newest never costs a good one."""
    paths = [put(tmp_path, s) for s in range(1, 6)]
    for broken in (paths[4], paths[2]):
        (broken / "a.bin").write_bytes(b"rot")
    assert prune(tmp_path, 2) == [paths[0]]
    assert latest_verified(tmp_path).path == paths[3]
    assert [p.name for p in steps(tmp_path)] == [p.name for p in reversed(paths[1:])]
    for broken in (paths[1], paths[3]):
        (broken / "a.bin").write_bytes(b"rot")
    assert prune(tmp_path, 2) == []
    assert latest_verified(tmp_path).path is None


def test_a_kill_while_pruning_leaves_no_half_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted is out of sight at once, and swept at the next start."""
    paths = [put(tmp_path, s) for s in (1, 2)]

    def killed(path: Path) -> None:
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 1)
    assert steps(tmp_path) == [paths[1]]
    assert len(sweep(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [paths[1]]


def test_saving_keeps_the_last_two(tmp_path: Path) -> None:
    """Five saves leave steps 4 and 5, both verified; the digest names the content."""
    manifests = [save_files(tmp_path, s, {"a.bin": [bytes(s)]}, {"s": s}) for s in range(1, 6)]
    assert [p.name for p in steps(tmp_path)] == ["step-00000005", "step-00000004"]
    assert verify(tmp_path / "step-00000004") == manifests[3]
    assert len({m.digest for m in manifests}) == 5


def test_pruning_reads_no_more_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing while there is nothing to delete; never what was hashed as it was written: commits wait for this."""
    read: list[str] = []
    hashed = durable.hash_file

    def noted(path: Path) -> object:
        read.append(path.parent.name)
        return hashed(path)

    monkeypatch.setattr(f"{checkpoint.__name__}.hash_file", noted)
    for step in range(1, 4):
        save_files(tmp_path, step, {"a.bin": [b"x"]}, {})
    assert read == ["step-00000002"]
    assert len(steps(tmp_path)) == 2


def test_an_old_step_that_cannot_be_removed_costs_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file that somebody still reads stays: the new one counts, and the next save tries again."""
    for step in (1, 2):
        save_files(tmp_path, step, {"a.bin": [b"x"]}, {})

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        assert save_files(tmp_path, 3, {"a.bin": [b"x"]}, {}).step == 3
    assert [p.name for p in steps(tmp_path)] == ["step-00000003", "step-00000002"]
    assert len(list(tmp_path.iterdir())) == 3
    save_files(tmp_path, 4, {"a.bin": [b"x"]}, {})
    assert [p.name for p in steps(tmp_path)] == ["step-00000004", "step-00000003"]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_root(tmp_path: Path) -> None:
    """Nothing there: nothing found, nothing skipped, nothing swept."""
    missing = tmp_path / "none"
    assert latest_verified(missing).path is None
    assert sweep(missing) == []


def test_damage_that_was_there_is_never_pruned(tmp_path: Path) -> None:
    """One that did not verify when the run went on stays until a person removes it; sound ones go as ever."""
    paths = [put(tmp_path, s) for s in range(1, 6)]
    (paths[1] / "a.bin").write_bytes(b"rot")
    there = {path.name for path in steps(tmp_path)}
    assert prune(tmp_path, 2, there=there) == [paths[2], paths[0]]
    assert [p.name for p in steps(tmp_path)] == [paths[4].name, paths[3].name, paths[1].name]
    assert prune(tmp_path, 2) == [paths[1]]


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    """Each with its reason, and what to do; with one that is whole there is no refusal, and without any neither."""
    assert to_go_on_from(tmp_path) == NOTHING
    older, newer = put(tmp_path, 1), put(tmp_path, 2)
    (newer / "a.bin").write_bytes(b"rot")
    assert to_go_on_from(tmp_path).path == older
    (older / "manifest.json").unlink()
    with pytest.raises(UnusableCheckpoint) as told:
        to_go_on_from(tmp_path)
    for part in ("none of the 2", "step-00000002/a.bin: size or", "step-00000001/manifest.json: unreadable", "away"):
        assert part in str(told.value)
    assert [p.name for p in steps(tmp_path)] == [newer.name, older.name]


def test_what_is_no_folder_is_swept_too(tmp_path: Path) -> None:
    """A file, a dangling link and a link to a folder under the names that a crash leaves; nothing beyond a link."""
    kept = put(tmp_path, 3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".old-step-00000030-5").write_text("")
    (tmp_path / ".tmp-step-00000030-5").symlink_to("nowhere")
    (tmp_path / ".tmp-step-00000031-5").symlink_to("elsewhere")
    assert len(sweep(tmp_path)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", kept.name]
    (tmp_path / "step-00000001").write_text("")
    assert prune(tmp_path, 1) == [tmp_path / "step-00000001"]


def test_steps_of_nine_digits_are_the_newest(tmp_path: Path) -> None:
    """By number, not by name; also one that was set aside."""
    for step in (99_999_999, 100_000_000, 20):
        put(tmp_path, step)
    assert [p.name for p in steps(tmp_path)] == ["step-100000000", "step-99999999", "step-00000020"]
    (tmp_path / "step-100000000").rename(tmp_path / ".old-step-100000000-7")
    assert sweep(tmp_path) == []
    assert latest_verified(tmp_path).path == tmp_path / "step-100000000"
