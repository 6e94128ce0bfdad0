"""Scoring by the user's `reward_fn(messages, answer)` in worker processes: `Pool` and its verdicts."""

from .pool import Pool
from .process import Spec
from .verdict import Acted, InfrastructureFault, Job, ProgramFault, RewardFileError, Scored, Verdict

__all__ = [
    "Acted",
    "InfrastructureFault",
    "Job",
    "Pool",
    "ProgramFault",
    "RewardFileError",
    "Scored",
    "Spec",
    "Verdict",
]
