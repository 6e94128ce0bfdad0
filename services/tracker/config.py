"""What the tracker can be told."""

from typing import ClassVar, Literal

from pydantic import Field

from midflight.kernel.spec import ServiceSpec


class TrackerConfig(ServiceSpec):
    """metrics.jsonl always; MLflow and Weights & Biases as sinks that may lag or die."""

    entry: ClassVar[str] = "midflight.services.tracker.service:Tracker"
    takeover: ClassVar[Literal["beside", "after", "restart", "never"]] = "after"

    kind: Literal["tracker"] = "tracker"
    stop_last: bool = Field(True, description="It records what the others say while they end; see ServiceSpec.")
    sinks: list[Literal["mlflow", "wandb"]] = Field(["mlflow", "wandb"], description="Sinks besides metrics.jsonl.")
    project: str = Field("midflight", description="Experiment (MLflow) or project (W&B) name.")
    mlflow_uri: str | None = Field(None, description="Tracking URI; mlflow.db in the run directory when omitted.")
    wandb_mode: Literal["offline", "online"] = Field("offline", description="W&B mode.")
