"""What every service that trains a model can be told: optimizer, adapters, ranks, memory, checkpoints."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import DEVICE, Config, ServiceSpec, TopologyPath, live


class LookaheadConfig(Config):
    """Slow weights that follow the optimizer's, which start again from there."""

    k: int = Field(5, ge=1, description="Optimizer updates between two moves of the slow weights.")
    alpha: float = Field(0.5, gt=0, le=1, description="Share of the way to the fast weights that they go.")


class OptimConfig(Config):
    """An update rule with warm-up and a schedule; see docs/optimizers.md."""

    name: Literal["adamw", "sgd", "muon", "lamb", "adamw_8bit"] = Field(
        "adamw",
        description="Update rule. muon: hidden matrices only, AdamW for the rest. adamw_8bit: moments of a byte each, "
        "by torchao. A critic's is always AdamW.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Weight decay of matrices: decoupled; sgd adds it to the gradient, lamb to the step it scales.",
    )
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="Moment decays of both adamw and of lamb."
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Of sgd and muon.")
    warmup_steps: int = Field(5, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = Field(
        "constant", description="Shape after the warm-up. wsd: constant, then linear (warm-up, stable, decay)."
    )
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Share of `lr` at which a falling schedule ends.")
    decay_share: float = Field(
        0.2, gt=0, le=1, description="wsd: share of all steps, the last ones, in which it falls."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    lookahead: LookaheadConfig | None = Field(None, description="Slow weights (Lookahead); none when omitted.")


class LoraConfig(Config):
    """Low-rank adapters, which train in place of the model's own weights; see docs/optimizers.md."""

    r: int = Field(16, ge=1, le=4096, description="Rank.")
    alpha: int = Field(32, ge=1, description="An adapter's output is scaled by alpha / r.")
    rslora: bool = Field(False, description="Scale alpha / sqrt(r) in place of alpha / r.")
    target_modules: list[str] = Field(
        ["all-linear"],
        min_length=1,
        description="Names of the linear layers that get one; `all-linear`: all between embedding and head.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Only 0: another is refused, with the reason.")

    @property
    def scale(self) -> float:
        """What B A x is multiplied with; rslora: Kalajdzievski 2023, arXiv 2312.03732."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.dropout:
            raise ValueError(
                "dropout: leave it at 0: with it the policy that is trained is not the one that the engine samples "
                "from, ratios to it are noise, and what is computed depends on how a batch is cut over ranks"
            )
        return self


class TrainingConfig(ServiceSpec):
    """What every service that trains a model can be told."""

    takeover: ClassVar[Literal["beside", "after", "restart", "never"]] = "restart"
    trains: ClassVar[bool] = True

    significant: bool = Field(True, description="Its normal exit ends the run; see ServiceSpec.")
    restart: Literal["permanent", "transient", "temporary"] = Field("transient", description="See ServiceSpec.")
    replicas: int = Field(1, ge=1, le=1, description="One: it speaks for its whole group.")
    device: str = Field(
        "auto", pattern=DEVICE, description="`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if torch sees one."
    )
    ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes that train together, on all hosts, each with its share of every batch and `threads` "
        "threads; with GPUs one each.",
    )
    hosts: int = Field(
        1,
        ge=1,
        le=1024,
        description="Hosts over which the ranks are spread evenly; on each but the first, `midflight join` runs. See "
        "docs/parallelism.md, also for torchrun.",
    )
    meet: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+(:[0-9]{1,5})?$",
        description="`host` or `host:port` where other hosts reach the learner; this host's address, and a port that "
        "the run keeps, when omitted.",
    )
    ticket: TopologyPath | None = Field(
        None,
        description="File with address and key for `midflight join`, made if it is not there; RUN/NAME.ticket when "
        "omitted.",
    )
    join_timeout_s: float = Field(
        600.0, gt=0, description="How long the learner waits for the ranks of other hosts, in seconds."
    )
    ddp_size: int = Field(
        1,
        ge=1,
        description="Copies of the parameters in the group; each is cut over what the other sizes leave of it (FSDP).",
    )
    sp_size: int = Field(
        1, ge=1, description="Ranks that share the sequences of one micro-batch (zigzag ring attention)."
    )
    tp_size: int = Field(
        1,
        ge=1,
        description="Ranks that share each layer's heads and matrices, and the vocabulary (tensor parallel).",
    )
    collective_timeout_s: float = Field(
        120.0, gt=0, description="How long a rank waits for one that does not answer before the group begins again."
    )
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters only, in a warm start too; all weights when omitted."
    )
    max_length_per_device: int = Field(
        16384, ge=16, description="Tokens of a micro-batch, for each of the ranks that share its sequences."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    recompute_every: int = Field(
        1, ge=1, description="With `gradient_checkpointing`: of so many layers one is recomputed, 1 is all of them."
    )
    activation_offload: bool = Field(
        False,
        description="What is kept for the backward pass waits in host memory; with `gradient_checkpointing` that is "
        "the inputs of layers. Nothing moves on a CPU.",
    )
    optimizer_offload: bool = Field(
        False,
        description="The optimizer's state is in host memory and its step is computed there; with several ranks, "
        "weights and gradients are there too. In one process on a CPU it only costs a copy of the weights.",
    )
    bf16: Literal["auto", "on", "off"] = Field(
        "auto",
        description="bfloat16 in the layers; masters, sums of gradients and log-probs stay fp32. auto: where it was "
        "measured to pay.",
    )
    compile: bool = Field(
        False,
        description="Decoder layers as compiled code, made in the first step; on a CPU by a C++ compiler. Not with "
        "`tp_size`.",
    )
    kernels: Literal["torch", "liger"] = Field(
        "torch",
        description="liger: Triton kernels of norms, MLPs and rotary embeddings, on GPUs. Not with `tp_size`, nor with "
        "`compile`.",
    )
    profile_interval: float | None = Field(
        None,
        gt=0,
        description="Seconds between two lines of RUN/profile, each rank's memory and what it is used for; 1.0 is "
        "usual, no lines when omitted.",
    )
    memory_snapshot: int = Field(
        0, ge=0, description="So many steps, the first ones, whose allocations on a GPU are written to RUN/profile."
    )
    checkpoint_every: int = Field(
        20, ge=1, description="Steps between checkpoints.", json_schema_extra=live(1, 1_000_000, "steps")
    )
    keep_checkpoints: int = Field(
        2, ge=2, description="Verified checkpoints kept.", json_schema_extra=live(2, 1000, when="next checkpoint")
    )

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        taken = self.ddp_size * self.sp_size * self.tp_size
        if self.ranks % self.hosts:
            raise ValueError(f"{self.ranks} ranks cannot be spread evenly over {self.hosts} hosts: set ranks or hosts")
        if self.ranks % taken:
            raise ValueError(
                f"ddp_size {self.ddp_size} x sp_size {self.sp_size} x tp_size {self.tp_size} = {taken} does not divide "
                f"the group of {self.ranks} ranks: set ranks to a multiple of {taken}, or the sizes lower"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_torchs(self) -> Self:
        for name, chosen in (("compile", self.compile), ("kernels: liger", self.kernels == "liger")):
            if chosen and self.tp_size > 1:
                raise ValueError(
                    f"{name} is for whole layers, which tp_size {self.tp_size} cuts: leave one of them out"
                )
        if self.compile and self.kernels == "liger":
            raise ValueError("compile and kernels: liger replace the same parts of a layer: leave one of them out")
        if self.kernels == "liger" and self.device == "cpu":
            raise ValueError("kernels: liger is for GPUs, and device is cpu: leave kernels out")
        return self

    def misfits(self, shape: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Heads are cut whole."""
        for name, what in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key-value heads")):
            count = shape.get(name)
            if isinstance(count, int) and count % self.tp_size:
                yield "tp_size", f"{self.tp_size} does not divide the model's {count} {what}: set one that does, or 1"

    @property
    def longest(self) -> int:
        """Positions of a micro-batch, and so of a sequence: `max_length_per_device` of each rank that shares it."""
        return self.max_length_per_device * self.sp_size * self.tp_size
