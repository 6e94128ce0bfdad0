"""Tracking of feature E8: `MetricsLog` is the truth, `SinkProcess` feeds MLflow and W&B from it."""

from .jsonl import MetricsLog, Record, read_from
from .sink_process import SinkProcess, sink_argv

__all__ = ["MetricsLog", "Record", "SinkProcess", "read_from", "sink_argv"]
