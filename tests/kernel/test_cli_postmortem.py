"""What `midflight up` shows of a run that failed."""

from pathlib import Path

from midflight.kernel.cli.postmortem import LINES, last_words


def test_last_words_of_the_service_at_fault(tmp_path: Path) -> None:
    """The newest generation that said anything, its last lines only; nobody else's."""
    (tmp_path / "learner.9.out").write_text("old\n")
    (tmp_path / "learner.10.out").write_text("\n".join(f"line {n}" for n in range(50)))
    (tmp_path / "learner.11.out").write_text("")
    (tmp_path / "learner-mlflow.out").write_text("a sink\n")
    (tmp_path / "kernel.1.out").write_text("fine\n")
    text = last_words(tmp_path, ["learner"])
    assert text.splitlines() == [f"{tmp_path}/learner.10.out:", *(f"  line {n}" for n in range(50 - LINES, 50))]


def test_last_words_of_the_kernel_and_the_warden(tmp_path: Path) -> None:
    """When no service was given up, those two know why; without any output there is nothing to show."""
    assert last_words(tmp_path, []) == ""
    (tmp_path / "kernel.2.out").write_text("OSError: address in use\n")
    (tmp_path / "warden.out").write_text("giving up\n")
    text = last_words(tmp_path, ["never-started"])
    assert "  OSError: address in use" in text
    assert text.endswith("warden.out:\n  giving up")
