"""The run directory: private, held by one living process, cleaned under the lock."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from midflight.kernel.rundir import RunDir, RunDirBusy, RunDirError, RunInfo, create_shm, file_system
from midflight.kernel.rundir import directory as directory_module
from midflight.kernel.rundir.lock import start_time

PKG = Path(__file__).parents[2] / ".pkg"
HOLD = """
import sys
from midflight.kernel.rundir import RunDir
run = RunDir(sys.argv[1]).create().hold()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a run directory until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(PKG)},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def info(run: RunDir, name: str = "toy", started_ns: int = 1) -> RunInfo:
    """A plausible run.json."""
    return RunInfo(name, f"{name}-0123abcd", os.getpid(), started_ns, 1, run.endpoints(), "0" * 32)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.stat(path).st_mode)


# --- creation


def test_create_is_private(tmp_path: Path) -> None:
    """The directory and its folders are 0700 whatever the umask, parents are made, and twice is fine."""
    old = os.umask(0)
    try:
        run = RunDir(tmp_path / "a" / "b").create().create()
    finally:
        os.umask(old)
    assert [mode(path) for path in (run.path, run.logs, run.checkpoints)] == [0o700] * 3


def test_create_closes_an_open_directory(tmp_path: Path) -> None:
    """An empty directory that others could read is taken over and closed."""
    (tmp_path / "r").mkdir(mode=0o755)
    assert mode(RunDir(tmp_path / "r").create().path) == 0o700


def test_create_refuses_a_foreign_directory(tmp_path: Path) -> None:
    """Somebody's folder is not turned into a run directory, and is left as it was."""
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "lock").write_text("")
    with pytest.raises(RunDirError) as caught:
        RunDir(tmp_path).create()
    assert str(caught.value) == (
        f"{tmp_path} is not empty and not a run directory - choose another --run-dir or an empty one"
    )
    assert sorted(os.listdir(tmp_path)) == ["lock", "thesis.tex"]


def test_create_refuses_a_file(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "f").write_text("x")
    with pytest.raises(RunDirError, match=f"^{tmp_path}/f is not a directory - remove it or choose another"):
        RunDir(tmp_path / "f").create()
    with pytest.raises(RunDirError, match=f"^cannot create {tmp_path}/f/r: "):
        RunDir(tmp_path / "f" / "r").create()


def test_create_keeps_a_former_run(tmp_path: Path) -> None:
    """A run directory can be used again with what is in it."""
    with RunDir(tmp_path).create() as run:
        run.ledger_db.write_text("rows")
    assert RunDir(tmp_path).create().ledger_db.read_text() == "rows"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_create_refuses_anothers_directory(tmp_path: Path) -> None:
    """A directory of another user is refused."""
    (tmp_path / "r").mkdir()
    os.chown(tmp_path / "r", 12345, -1)
    with pytest.raises(RunDirError, match=r"belongs to user 12345, not to us - choose another --run-dir$"):
        RunDir(tmp_path / "r").create()


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's write-ahead log is not safe on NFS, so the run directory must not be there."""
    monkeypatch.setattr(directory_module, "file_system", lambda path, mounts: ("nfs4", "/home"))
    with pytest.raises(RunDirError) as caught:
        RunDir(tmp_path / "r").create()
    assert str(caught.value) == (
        f"{tmp_path}/r is on nfs4 (mounted at /home), where the ledger is not safe - choose a --run-dir on a local disk"
    )


def test_file_system_of_a_path() -> None:
    """The longest mount point above a path counts, the later of two; blanks are octal in /proc/mounts."""
    mounts = (
        "/dev/sda / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\n/dev/sdb /home/me ext4 rw 0 0\n"
        "s:/y /my\\040data nfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\noverlay /tmp overlay rw 0 0\nbroken\n"
    )
    expected = {"/home/you/r": "nfs4", "/home/me": "ext4", "/homes": "ext4", "/my data/r": "nfs", "/tmp/r": "overlay"}
    assert {path: file_system(Path(path), mounts)[0] for path in expected} == expected
    assert file_system(Path("/x"), "") == ("unknown", "")


# --- the lock


def test_second_holder_is_refused(tmp_path: Path) -> None:
    """The error names the directory, the holder's pid and what to do (fault 18); reading harms nobody."""
    with holder(tmp_path / "r") as process:
        run = RunDir(tmp_path / "r")
        assert run.is_run()
        assert run.is_live()
        with pytest.raises(RunDirBusy) as caught:
            run.create().hold()
        assert caught.value.pid == process.pid
        assert str(caught.value) == (
            f"{run.path} is in use by process {process.pid} - "
            f"stop it with 'midflight down --run {run.path}' or choose another --run-dir"
        )


def test_second_hold_in_this_process(tmp_path: Path) -> None:
    """Two objects of one process exclude each other too; holding twice by one is no error."""
    with RunDir(tmp_path).create() as run:
        assert run.hold() is run
        with pytest.raises(RunDirBusy):
            RunDir(tmp_path).hold()
    RunDir(tmp_path).hold().release()


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    """After kill -9 the directory is free, is known to be dead, and can be held at once."""
    with holder(tmp_path / "r") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        run = RunDir(tmp_path / "r")
        assert not run.is_live()
        with run:
            assert run.is_live()
    assert not run.is_live()


def test_a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    """A living process with the pid of a dead holder does not make the run look alive."""
    run = RunDir(tmp_path).create()
    started = start_time(os.getpid())
    assert started
    run.lock.path.write_text(f"midflight {os.getpid()} {started - 1}\n")
    assert not run.is_live()
    run.lock.path.write_text(f"midflight {os.getpid()} {started}\n")
    assert run.is_live()


def test_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    """A process that the holder started and left behind does not hold the directory."""
    run = RunDir(tmp_path).create().hold()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        run.release()
        RunDir(tmp_path).hold().release()
    finally:
        child.communicate(b"\n")


def test_lock_is_not_followed(tmp_path: Path) -> None:
    """A link in place of the lock is refused, and its target is not written."""
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirError, match=f"^cannot lock {tmp_path}/lock: "):
        RunDir(tmp_path).hold()
    assert not (tmp_path / "elsewhere").exists()


def test_stale_files_are_cleaned_under_the_lock(tmp_path: Path) -> None:
    """Sockets, run.json and shared memory of a dead run go (fault 19), but only once the lock is held."""
    shm = tmp_path / "shm"
    shm.mkdir()
    run = RunDir(tmp_path / "r", shm).create().hold()
    run.publish(info(run))
    memory = create_shm("toy-0123abcd", run.path, shm)
    for name in ("ctl.ipc", "ev.ipc", "data.ipc", "warden.sock"):
        socket.socket(socket.AF_UNIX).bind(str(run.path / name))
    before = sorted(os.listdir(run.path))

    late = RunDir(tmp_path / "r", shm)
    with pytest.raises(RunDirBusy):
        late.create().hold()
    assert sorted(os.listdir(run.path)) == before
    assert memory.exists()

    run.lock.release()  # what the death of the process does
    late.hold()
    assert sorted(os.listdir(run.path)) == ["checkpoints", "lock", "logs"]
    assert late.previous == info(run)
    assert not memory.exists()


def test_a_failed_hold_gives_the_lock_back(tmp_path: Path) -> None:
    """When cleaning fails, the directory is not left locked by a process that does not own it."""
    run = RunDir(tmp_path).create()
    (run.path / "ctl.ipc").mkdir()
    with pytest.raises(OSError, match=r"ctl\.ipc"):
        run.hold()
    assert not run.is_live()
    (run.path / "ctl.ipc").rmdir()
    run.hold().release()


def test_a_damaged_run_json_does_not_block(tmp_path: Path) -> None:
    """A run.json with a run id that is none is cleaned away like any other."""
    run = RunDir(tmp_path).create()
    run.publish(replace(info(run), run_id="../../etc"))
    with run:
        assert not run.run_json.exists()


def test_release_leaves_run_json(tmp_path: Path) -> None:
    """After a run its sockets are gone and run.json still tells what ran."""
    with RunDir(tmp_path).create() as run:
        run.publish(info(run))
        (run.socket_dir() / "warden.sock").touch()
    assert not (run.socket_dir() / "warden.sock").exists()
    assert RunDir(tmp_path).info() == info(run)


# --- run.json and addresses


def test_run_json(tmp_path: Path) -> None:
    """run.json is 0600 and reads back; anything else in its place is no run."""
    run = RunDir(tmp_path).create()
    assert run.info() is None
    run.publish(info(run))
    assert mode(run.run_json) == 0o600
    assert run.info() == info(run)
    for text in ("", "[]", "{}", '{"run": 1}', "\xff"):
        run.run_json.write_bytes(text.encode("latin-1"))
        assert run.info() is None


def test_endpoints_in_the_run_directory() -> None:
    """Sockets lie in the run directory while their paths are short enough."""
    run = RunDir("/short/run")
    assert run.endpoints() == {name: f"ipc:///short/run/{name}.ipc" for name in ("ctl", "ev", "data")}
    assert (run.socket_dir() / "warden.sock") == Path("/short/run/warden.sock")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_long_paths_get_a_hashed_directory(tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path beyond 100 bytes has its sockets in a private directory that can be bound, and that goes again."""
    base = short_folder
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    deep = RunDir(tmp_path / ("d" * 100)).create().hold()
    folder = deep.socket_dir()
    assert folder.parent == base
    assert mode(folder) == 0o700
    assert len(str(deep.socket_dir() / "warden.sock")) <= 100
    assert deep.endpoints()["ctl"] == f"ipc://{folder}/ctl.ipc"
    assert RunDir(tmp_path / ("e" * 100)).socket_dir() != folder
    socket.socket(socket.AF_UNIX).bind(str(deep.socket_dir() / "warden.sock"))
    deep.release()
    assert not folder.exists()


def test_hashed_directory_falls_back_to_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a usable XDG_RUNTIME_DIR the directory is under /tmp."""
    for value in ("", str(tmp_path / "absent"), str(tmp_path / ("y" * 90))):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        folder = RunDir(tmp_path / ("d" * 100)).socket_dir()
        assert folder.parent == Path("/tmp")
        folder.rmdir()


def test_squatted_socket_directory_is_refused(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that someone put where our hashed directory belongs is not followed."""
    base = short_folder
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    run = RunDir(tmp_path / ("d" * 100))
    folder = run.socket_dir()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(RunDirError, match="is not a directory"):
        run.socket_dir()


UP = 'exec "$PYTHON" -P -m midflight.kernel.cli.main up demo --run-dir "$RUN"'
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def up_after(before: str, path: Path, *wrap: str) -> "subprocess.CompletedProcess[str]":
    """`midflight up` in a shell in which something was done before."""
    env = {**os.environ, "PYTHONPATH": str(PKG), "PYTHON": sys.executable, "RUN": f"{path}/run", "FOLDER": str(path)}
    command = [*wrap, "sh", "-c", f"{before} || exit 99\n{UP}"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


@pytest.mark.skipif(
    bool(shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode),
    reason="no user namespaces here",
)
def test_a_full_disk_is_told_with_its_folder(tmp_path: Path) -> None:
    """Before anything is started, for nothing could be written of why it fails."""
    done = up_after('mount -t tmpfs -o size=48k none "$FOLDER"', tmp_path, *UNSHARE)
    assert done.returncode == 2
    why = "48 KiB are free on its disk, and a run needs 16 MiB at the very least - free some, or choose another"
    assert done.stderr == f"midflight up: {tmp_path}/run: {why} --run-dir\n"


def test_what_cannot_be_written_is_told_with_its_folder(tmp_path: Path) -> None:
    """The system does not say where a write failed."""
    done = up_after("ulimit -f 0", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"midflight up: {tmp_path}/run: cannot be written: File too large\n"
