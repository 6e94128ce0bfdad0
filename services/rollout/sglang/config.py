"""What a rollout on SGLang servers can be told."""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from midflight.kernel.spec import EnvName, ServiceSpec, TopologyPath, must_be_here
from midflight.services.rollout.config import GenerationConfig

from .address import server_url


class SglangConfig(GenerationConfig):
    """Generation by SGLang servers: launched and watched by the service, or found at URLs."""

    entry: ClassVar[str] = "midflight.services.rollout.sglang.service:Sglang"
    plays: ClassVar[str] = "rollout"

    kind: Literal["sglang"] = "sglang"
    start_timeout_s: float = Field(900, gt=0, description="Longest time from spawn to ready, in seconds.")
    urls: list[Annotated[str, AfterValidator(server_url)]] = Field(
        [],
        description="Servers that exist, e.g. http://host:30000, and obey this rollout alone; none are launched then.",
    )
    servers: int = Field(1, ge=1, le=64, description="Servers to launch, each with its own copy of the model.")
    tp_size: int = Field(1, ge=1, le=64, description="Processes a launched server cuts the model over.")
    router: bool = Field(False, description="Send requests through SGLang's router, which knows whose cache fits best.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where launched servers compute. `cpu` needs the plug-in of docs/sglang.md."
    )
    python: TopologyPath | None = Field(
        None,
        description="Interpreter of SGLang's environment; when omitted what MIDFLIGHT_SGLANG_PYTHON names, else "
        ".venv-sglang/bin/python in the working directory, else our own.",
    )
    server_args: list[str] = Field([], description="Further arguments of sglang.launch_server; the last one wins.")
    pause: Literal["retract", "in_place", "abort"] = Field(
        "retract",
        description="At a weight update running requests are computed anew (exact), go on with old keys and values, or "
        "are asked for again from where they stand.",
    )
    transfer: Literal["disk", "tensor", "distributed"] = Field(
        "disk", description="How weights travel: a folder on the same host, over HTTP, or a process group."
    )
    api_key_env: EnvName | None = Field(None, description="Environment variable with the key of the servers at `urls`.")
    generate_timeout_s: float = Field(600, gt=0, description="Longest time of one response, in seconds.")
    update_timeout_s: float = Field(120, gt=0, description="Longest time of one weight update, in seconds.")
    stall_s: float = Field(
        30,
        gt=0,
        description="A server that has requests and does not go on for so long is probed, in seconds; a router or a "
        "paused server that does not answer for so long counts as dead.",
    )

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _is_set(cls, name: object, info: ValidationInfo) -> object:
        """Asked of what a user wrote, as with files that must exist; a resolved topology is read back without it."""
        if must_be_here(name, info) and not os.environ.get(str(name)) and name not in info.data.get("env", {}):
            raise ValueError(f"the environment variable {name} is not set: export it where midflight is started")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.urls and (self.servers, self.tp_size, self.server_args) != (1, 1, []):
            raise ValueError("servers, tp_size and server_args are for servers launched here: leave them or urls out")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls names a server twice")
        if self.api_key_env and not self.urls:
            raise ValueError("api_key_env is for servers at urls; those launched here listen on this machine only")
        if self.router and self.pause == "in_place":
            raise ValueError("pause in_place keys the cache by version, which the router does not know: use retract")
        if self.router and self.api_key_env:
            raise ValueError("the router is not told keys: leave api_key_env or router out")
        return self

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """Servers are told weights by one rollout only."""
        if self.urls and self.replicas > 1:
            yield "replicas", f"{self.replicas} rollouts would command the same urls: make it one, or a slot each"
        for name, other in others.items():
            if isinstance(other, SglangConfig) and other is not self and set(other.urls) & set(self.urls):
                yield "urls", f"{name} commands the same servers: give each rollout its own"
