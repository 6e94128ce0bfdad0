"""What a reward server can be told."""

from typing import ClassVar, Literal

from pydantic import Field

from midflight.kernel.spec import ExistingPath, ServiceSpec


class RewardConfig(ServiceSpec):
    """`reward_fn(messages, answer)` from a user's file, in limited worker processes."""

    entry: ClassVar[str] = "midflight.services.reward.service:Reward"

    kind: Literal["reward"] = "reward"
    significant: bool = Field(True, description="Nothing goes on without it; see ServiceSpec.")
    file: ExistingPath = Field(description="Python file that defines `reward_fn(messages, answer)`.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes.")
    time_limit_s: float = Field(10.0, gt=0, description="Longest time of one call, in seconds.")
    worker_memory_mb: int = Field(1024, ge=64, description="Address space of a worker, in MiB.")
    queue: int = Field(1024, ge=1, description="Samples held at a time.")
    pass_env: list[str] = Field([], description="Environment variables a worker may see, by name.")
