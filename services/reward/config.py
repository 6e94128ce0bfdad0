"""What a reward server can be told."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from midflight.kernel.spec import ExistingPath, ServiceSpec, live


class RewardConfig(ServiceSpec):
    """`reward_fn(messages, answer)` from a user's file, in limited worker processes."""

    entry: ClassVar[str] = "midflight.services.reward.service:Reward"

    kind: Literal["reward"] = "reward"
    significant: bool = Field(True, description="Nothing goes on without it; see ServiceSpec.")
    file: ExistingPath = Field(description="Python file that defines `reward_fn(messages, answer)`.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes.")
    time_limit_s: float = Field(
        10.0,
        gt=0,
        description="Longest time of one call, in seconds.",
        json_schema_extra=live(0.001, 86400.0, "s", "next call"),
    )
    worker_memory_mb: int = Field(1024, ge=64, description="Address space of a worker, in MiB.")
    queue: int = Field(
        1024,
        ge=1,
        description="Samples held at a time; what is held beyond a lower value is still scored.",
        json_schema_extra=live(1, 16384, "samples", "next request"),
    )
    pass_env: list[str] = Field([], description="Environment variables a worker may see, by name.")

    @field_validator("file")
    @classmethod
    def _defines_reward_fn(cls, value: str) -> str:
        """Look, without running it: a name bound at the top level in any way will do."""
        try:
            tree = ast.parse(Path(value).read_bytes(), value)
        except SyntaxError as error:
            raise ValueError(f"{value}:{error.lineno}: the reward file is not Python: {error.msg}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{value}: the reward file cannot be read: {error}") from None
        if "reward_fn" not in set(_names(tree.body)):
            raise ValueError(f"{value}: the reward file does not define reward_fn(messages, answer)")
        return value


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Every name that statements bind, or might; a star import might bind any."""
    for node in (inner for statement in body for inner in ast.walk(statement)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=alias):
                yield "reward_fn" if name == "*" else alias or name
