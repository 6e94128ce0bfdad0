"""Mistakes of the user: what starting a service again cannot mend."""

from typing import Final

EXIT_MISTAKE: Final = 78
"""EX_CONFIG of sysexits.h. The supervisor never restarts a service that ends with it; the run ends and says why."""


class UserMistake(Exception):
    """What a user gave (data, reward file, model, checkpoint) cannot be used; the text says what, where, what to do;
    who says it, the kernel puts before it."""
