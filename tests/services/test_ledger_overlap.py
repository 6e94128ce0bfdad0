"""The overlap of generation and training, as the ledger measures it."""

from midflight.services.ledger.overlap import Overlap


def test_shares_of_time() -> None:
    """Time counts from the first training on; each state lasts until the next one is told."""
    overlap = Overlap()
    overlap.add(0.0, generating=True, training=False)
    overlap.add(5.0, generating=True, training=True)
    overlap.add(7.0, generating=False, training=True)
    overlap.add(8.0, generating=False, training=False)
    overlap.add(9.0, generating=True, training=False)
    assert overlap.shares() == {"seconds": 4.0, "generating": 0.5, "training": 0.75, "both": 0.5}


def test_nothing_yet() -> None:
    """Before the first batch all shares are zero."""
    assert Overlap().shares() == {"seconds": 0.0, "generating": 0.0, "training": 0.0, "both": 0.0}
