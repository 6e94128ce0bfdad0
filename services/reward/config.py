"""What a reward server can be told."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from midflight.kernel.spec import ELSEWHERE, ExistingPath, ServiceSpec, live

from . import environments

_OURS = Path(__file__).resolve().parents[2] / "configs"


class RewardConfig(ServiceSpec):
    """`reward_fn(messages, answer)` from a user's file, in sandboxed worker processes."""

    entry: ClassVar[str] = "midflight.services.reward.service:Reward"
    follows: ClassVar[tuple[str, ...]] = ("ledger",)

    kind: Literal["reward"] = "reward"
    significant: bool = Field(True, description="Nothing goes on without it; see ServiceSpec.")
    file: ExistingPath | None = Field(None, description="Python file that defines `reward_fn(messages, answer)`.")
    environment: str | None = Field(
        None,
        description="Instead of a file: ADAPTER:NAME, an environment of another library (docs/environments.md), such "
        "as `verifiers:my-tasks` or `openenv:my_env.server:MyEnvironment`.",
    )
    environment_args: dict[str, JsonValue] = Field({}, description="What the environment is made with; JSON.")
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
    trusted: bool = Field(
        False,
        description="You vouch for the file and all that it runs: warm processes under limits instead of a sandbox.",
    )
    isolation: Literal["auto", "bwrap", "namespaces", "rlimits", "remote"] = Field(
        "auto", description="How calls are contained (docs/sandbox.md); auto takes the strongest that works here."
    )
    network: bool = Field(
        False, description="Leave the sandbox the machine's network, for a reward_fn that calls a served model."
    )
    remote: str | None = Field(
        None, pattern=r"^https?://\S+$", description="URL of the sandbox service, with `isolation: remote`."
    )

    @field_validator("file")
    @classmethod
    def _defines_reward_fn(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Look, without running it: a name bound at the top level in any way will do."""
        if value is None or _elsewhere(info):
            return value
        try:
            names = _bound(value)
        except SyntaxError as error:
            raise ValueError(f"{value}:{error.lineno}: the reward file is not Python: {error.msg}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{value}: the reward file cannot be read: {error}") from None
        if "reward_fn" not in names:
            raise ValueError(f"{value}: the reward file does not define reward_fn(messages, answer)")
        return value

    @field_validator("environment")
    @classmethod
    def _is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not _elsewhere(info):
            environments.check(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.file is None) == (self.environment is None):
            raise ValueError("give one of `file` and `environment`")
        if self.isolation == "rlimits" and not self.vouched:
            raise ValueError(
                "isolation: rlimits limits the reward file but does not contain it - set trusted: true if you vouch "
                "for the file and all that it runs, else leave isolation: auto"
            )
        if (self.isolation == "remote") != (self.remote is not None):
            raise ValueError("isolation: remote and remote: URL go together")
        return self

    @property
    def vouched(self) -> bool:
        """Whether somebody vouches for the file: the topology, or we, whose it is."""
        return self.trusted or (self.file is not None and _OURS in Path(self.file).resolve().parents)

    @property
    def has_interact(self) -> bool:
        """Whether the file defines `interact`, or might: such a server takes episodes of several turns."""
        return self.file is None or not Path(self.file).exists() or "interact" in _bound(self.file)


def _elsewhere(info: ValidationInfo) -> bool:
    return bool((info.context or {}).get(ELSEWHERE))


def _bound(file: str) -> set[str]:
    """The names that a file binds at the top level, or might. Raises OSError, SyntaxError, ValueError."""
    return set(_names(ast.parse(Path(file).read_bytes(), file).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Every name that statements bind, or might; a star import might bind any."""
    for node in (inner for statement in body for inner in ast.walk(statement)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=alias):
                yield from ("reward_fn", "interact") if name == "*" else (alias or name,)
