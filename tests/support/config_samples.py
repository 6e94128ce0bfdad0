"""A small registry and a base topology for the tests of configuration."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from midflight.kernel.config import Registry
from midflight.kernel.spec import Config, ExistingPath, ServiceSpec, TopologyPath, TopologyPathOrRef, path_rule


class Local(Config):
    """One member of a tagged union."""

    where: Literal["local"]
    cores: int = 1


class Remote(Config):
    """Another member of a tagged union."""

    where: Literal["remote"]
    host: str


class Rollout(ServiceSpec):
    """A generator."""

    entry: ClassVar[str] = "tests.rollout:Rollout"
    kind: Literal["rollout"] = "rollout"
    engine: Literal["sglang", "hf", "toy"] = "toy"
    place: Annotated[Local | Remote, Field(discriminator="where")] = Local(where="local")
    lengths: list[int] = [8]
    limit: int | str = 1


class Kl(ServiceSpec):
    """A controller."""

    kind: Literal["kl"] = "kl"
    target: float = Field(gt=0)
    beta: float = 0.05
    api_key: str = ""
    depends_on: list[str] = ["rollout"]


class Data(ServiceSpec):
    """A service with every sort of path."""

    kind: Literal["data"] = "data"
    out: TopologyPath | None = None
    prompts: TopologyPathOrRef = "task:toy"
    code: ExistingPath | None = None
    sink: Annotated[str, path_rule("off", "sqlite:")] = "off"
    many: dict[str, list[TopologyPath]] = {}


REGISTRY: Registry = {"rollout": Rollout, "kl": Kl, "data": Data}

BASE = """\
version: 1
run: toy
model:
  build: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
          head_dim: 16, intermediate_size: 128}
services:
  rollout:
    replicas: 2
  kl:
    target: 0.02
"""
