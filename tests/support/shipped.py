"""What a shipped topology leaves to its user."""

YOURS = {
    "distill": ["services.distill.teacher=."],
    "distill-on-policy": ["services.learner.kl.reference=."],
}
"""Topology -> words for a folder of one's own, in place of which a file has a name that no folder has."""
