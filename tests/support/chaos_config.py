"""What a topology can tell the chaos services; each takes the part of a built-in kind, without a model."""

from typing import ClassVar, Literal

from pydantic import Field

from midflight.kernel.spec import ServiceSpec
from midflight.services.ledger.config import LedgerConfig

HERE = "support.chaos_config"
FAST = {
    "start_timeout_s": 8.0,
    "heartbeat_timeout_s": 1.5,
    "intensity": 10_000,
    "backoff_s": 0.02,
    "backoff_max_s": 0.1,
}
"""A topology's restart rules under chaos: hangs are found soon and nobody gives up."""


class MillConfig(ServiceSpec):
    """A worker that needs `work_s` for each sample, many at a time, and dies of some."""

    slots: int = Field(64, ge=1, description="Samples worked on at a time.")
    work_s: float = Field(0.02, ge=0, description="Time a sample takes, in seconds.")
    poison: list[int] = Field([], description="Samples that end the process that works on them.")
    poison_by: Literal["kill", "loop", "gil"] = Field(
        "kill", description="How: SIGKILL, an endless loop, or a sleep in C that keeps the interpreter's lock."
    )
    crash: bool = Field(False, description="It ends at every start.")
    forgetful: bool = Field(False, description="Negative control: nothing is ever sent again.")


class GeneratorConfig(MillConfig):
    """Stage generate."""

    entry: ClassVar[str] = "support.chaos_services:Generator"
    plays: ClassVar[str] = "rollout"

    kind: str = f"{HERE}:GeneratorConfig"


class ScorerConfig(MillConfig):
    """Stage score."""

    entry: ClassVar[str] = "support.chaos_services:Scorer"
    plays: ClassVar[str] = "reward"

    kind: str = f"{HERE}:ScorerConfig"


class ConsumerConfig(ServiceSpec):
    """Stage train: one row a sample in effects.sqlite, which is its checkpoint too."""

    entry: ClassVar[str] = "support.chaos_consumer:Consumer"
    plays: ClassVar[str] = "learner"

    kind: str = f"{HERE}:ConsumerConfig"
    significant: bool = True
    restart: str = "transient"  # type: ignore[assignment]
    step_s: float = Field(0.0, ge=0, description="Pause between steps, in seconds.")
    checkpoint_every: int = Field(3, ge=1, description="Steps between checkpoints.")
    dies_last: bool = Field(
        False, description="The first dies when all is trained, before its checkpoint; restores come late."
    )
    late: bool = Field(False, description="Its first result comes only after the lease was given to it again.")


class TightLedgerConfig(LedgerConfig):
    """A ledger whose disk is full until a file `room` lies in the run directory."""

    entry: ClassVar[str] = "support.chaos_mutants:TightLedger"
    plays: ClassVar[str] = "ledger"

    kind: str = f"{HERE}:TightLedgerConfig"  # type: ignore[assignment]
    pages: int = Field(16, description="Pages of 8 KiB on the disk.")


class EagerLedgerConfig(LedgerConfig):
    """Negative control: acknowledges before it commits, and dies once in between."""

    entry: ClassVar[str] = "support.chaos_mutants:EagerLedger"
    plays: ClassVar[str] = "ledger"

    kind: str = f"{HERE}:EagerLedgerConfig"  # type: ignore[assignment]


class EpochlessLedgerConfig(LedgerConfig):
    """Negative control: an answer counts whatever lease it was given under."""

    entry: ClassVar[str] = "support.chaos_mutants:EpochlessLedger"
    plays: ClassVar[str] = "ledger"

    kind: str = f"{HERE}:EpochlessLedgerConfig"  # type: ignore[assignment]


class FaithfulLedgerConfig(LedgerConfig):
    """Negative control: the dead keep their credit and what they hold."""

    entry: ClassVar[str] = "support.chaos_mutants:FaithfulLedger"
    plays: ClassVar[str] = "ledger"

    kind: str = f"{HERE}:FaithfulLedgerConfig"  # type: ignore[assignment]
