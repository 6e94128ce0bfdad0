"""The answer "no" of a state machine: a short code for programs and one line for people."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request had no effect. The kernel sends it on as `messages.control.Refused`."""

    code: str
    why: str
