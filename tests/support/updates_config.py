"""What a topology can tell the services of the update soak; each takes the part of a built-in kind."""

from typing import ClassVar, Literal

from pydantic import Field

from midflight.kernel.spec import ServiceSpec
from midflight.services.rollout.config import RolloutConfig
from midflight.services.rollout.sglang.config import SglangConfig

HERE = "support.updates_config"


class UpdaterConfig(ServiceSpec):
    """A learner that publishes at a steady pace, checks every token it is given, and leaves after a while."""

    entry: ClassVar[str] = "support.updates_learner:Updater"
    plays: ClassVar[str] = "learner"
    follows: ClassVar[tuple[str, ...]] = ("ledger",)

    kind: str = f"{HERE}:UpdaterConfig"
    significant: bool = True
    restart: Literal["permanent", "transient", "temporary"] = "temporary"
    seconds: float = Field(10.0, gt=0, description="How long it publishes, from the first finished batch on.")
    least: int = Field(50, ge=0, description="Samples that must have been there at an update before it leaves.")
    interval_s: float = Field(0.2, gt=0, description="From one version to the next, in seconds.")
    attends: bool = Field(
        False,
        description="Whether tokens depend on the cached keys and values: only where these are computed anew at an "
        "update can a log-prob be checked then.",
    )
    torn_every: int = Field(0, ge=0, description="Every so manieth version has a changed byte; 0: none.")
    noise: float = Field(0.05, gt=0, description="Standard deviation of what one version differs by from the base.")
    near: float = Field(1e-3, gt=0, description="Largest difference of log-probs that counts as none, in nats.")


class WatchedConfig(RolloutConfig):
    """The embedded engine; when which version came into force is noted."""

    entry: ClassVar[str] = "support.updates_rollout:Watched"
    plays: ClassVar[str] = "rollout"

    kind: str = f"{HERE}:WatchedConfig"  # type: ignore[assignment]
    mutant: Literal["late", "torn"] | None = Field(
        None,
        description="Negative control: a version is said to begin a token late, or every other tensor of it is not "
        "loaded.",
    )


class WatchedSglangConfig(SglangConfig):
    """SGLang servers; when which version came into force at all of them is noted."""

    entry: ClassVar[str] = "support.updates_sglang:WatchedSglang"
    plays: ClassVar[str] = "rollout"

    kind: str = f"{HERE}:WatchedSglangConfig"  # type: ignore[assignment]
