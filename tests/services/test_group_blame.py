"""What is told of a group's end: errors of torch.distributed as they are raised, and who is blamed for them."""

import pytest

from midflight.services.learner.group.group import followed, late, of_a_collective

GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
CLOSED = f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:23766. This is typically caused by a remote worker"
RESET = f"{GLOO}pair.cc:537] Read error [127.0.0.1]:18562: Connection reset by peer."
TIMED_OUT = f"{GLOO}unbound_buffer.cc:129] Timed out waiting 12000ms for send operation to complete"
STORE = "DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?"
OWN = "CheckpointError: cannot write checkpoint"


@pytest.mark.parametrize(
    ("text", "collective", "timeout"),
    [(CLOSED, True, False), (RESET, True, False), (TIMED_OUT, True, True), (OWN, False, False)],
)
def test_errors_of_collectives_are_told_from_others(text: str, collective: bool, timeout: bool) -> None:
    """A hang from a peer that is gone, and both from what is this rank's own."""
    error = RuntimeError(text)
    assert (of_a_collective(error), late(error)) == (collective, timeout)


def test_the_first_to_end_is_blamed_and_not_who_missed_it() -> None:
    """Last words of a rank that only followed say so."""
    ends = [f"rank 1 is gone (exit code 1: {CLOSED})", "rank 2 is gone (exit code 1: MemoryError)"]
    assert min(ends, key=followed) == ends[1]
    assert followed(f"rank 1 is gone (exit code 1: orders.py:45: {STORE})")
