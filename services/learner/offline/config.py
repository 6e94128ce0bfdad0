"""What the trainers on rows of data can be told. Defaults are RL2's."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import Config, ModelPath, ServiceSpec, TopologyPath, live
from midflight.services.data.source import Source
from midflight.services.learner.training_config import OptimConfig, TrainingConfig


class HeldOutConfig(Config):
    """Rows that are never trained on, scored at the start, while training, and at the end."""

    data: Source = Field(description="Rows of the same form as those trained on.")
    rows: int = Field(256, ge=1, description="The first so many of them are used.")
    every: int = Field(
        50, ge=1, description="Steps between two evaluations.", json_schema_extra=live(1, 1_000_000, "steps")
    )


class OfflineConfig(TrainingConfig):
    """What all of them have in common."""

    entry: ClassVar[str] = "midflight.services.learner.offline.service:Offline"

    data: Source = Field(description="The rows to train on; their form depends on the kind (docs/trainers.md).")
    changed: Literal["refuse", "accept"] = Field(
        "refuse", description="What to do when a run that goes on finds other data than it began with."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps; when omitted, as many as `epochs` of the rows fill. A cosine schedule is "
        "stretched to them.",
        json_schema_extra=live(1, 1_000_000_000, "steps"),
    )
    epochs: int = Field(1, ge=1, description="How often every row is trained on, where `steps` is not given.")
    batch_size: int = Field(128, ge=1, description="Rows a step.")
    apply_chat_template: bool = Field(
        True, description="Whether conversations are rendered by the tokenizer's chat template."
    )
    evaluation: HeldOutConfig | None = Field(None, description="Held-out data.")
    save_to: TopologyPath | None = Field(
        None,
        description="Folder in which the trained model is left at the end, for transformers and as `model.path` of "
        "other runs; RUN/model when omitted.",
    )

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """A run trains one model."""
        for name, other in others.items():
            if isinstance(other, TrainingConfig):
                yield "kind", f"{name} trains the model of this run already: one trainer a run, then the next run"


class SftTrainerConfig(OfflineConfig):
    """Supervised fine-tuning on rows with `messages`: the assistant's tokens are learned."""

    kind: Literal["sft"] = "sft"
    optim: OptimConfig = OptimConfig(lr=5e-6)


class RewardModelConfig(OfflineConfig):
    """Trains a reward model on rows with `messages`, `chosen` and `rejected`: the first is to score higher."""

    kind: Literal["reward_model"] = "reward_model"
    optim: OptimConfig = OptimConfig(lr=1e-5)
    margin: float = Field(0.0, ge=0, description="By how much more, at least, the chosen response is to score.")


class DpoConfig(OfflineConfig):
    """Direct preference optimization on rows with `messages`, `chosen` and `rejected`."""

    kind: Literal["dpo"] = "dpo"
    optim: OptimConfig = OptimConfig(lr=5e-7)
    loss: Literal["sigmoid", "ipo"] = Field("sigmoid", description="DPO, or IPO (`services/algorithms/dpo.py`).")
    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to what it begins with.")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="sigmoid: share of pairs whose labels are taken to be swapped (conservative DPO).",
    )
    nll_coef: float = Field(
        0.0, ge=0, description="Weight of the chosen response's negative log-likelihood a token, added to the loss."
    )

    @model_validator(mode="after")
    def _smoothing_is_of_sigmoid(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is for loss: sigmoid; {self.loss} has none")
        return self


class DistillConfig(OfflineConfig):
    """Distillation on rows with `messages`: the student's distributions of the assistant's tokens become the teacher's.

    Whose text the rows hold, the teacher's or the student's, is for whoever makes them to choose.
    """

    kind: Literal["distill"] = "distill"
    optim: OptimConfig = OptimConfig(lr=5e-6)
    teacher: ModelPath = Field(
        description="Folder of the teacher, a Hugging Face causal language model with the student's tokenizer."
    )
    loss: Literal["forward_kl", "reverse_kl", "logprob"] = Field(
        "forward_kl", description="What is to become small (`services/algorithms/distill.py`)."
    )
    temperature: float = Field(1.0, gt=0, description="Logits of both are divided by it.")
