"""MLflow as a sink: a run in a SQLite file (or on a server), fed by `log_batch`.

Sending a batch twice has no effect: a metric's row is unique by name, value, time and step. Parameters are write-once
in MLflow, so a run's live hyper-parameters are metrics `hp/...`, and a parameter that a resumed run would change keeps
its first value.
"""

import os
import re
import sqlite3
from pathlib import Path

from .jsonl import Batch, Record
from .points import parameters, points

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # the limits of MLflow's log_batch
_LONGEST_PARAM = 6000  # characters
_ODD = re.compile(r"[^\w./: \-]")
_TAG = "midflight.run"
_SQLITE = "sqlite:///"


class MlflowSink:
    """One MLflow run, found again by `run_id`, or by the tag that names the midflight run.

    Raises:
        MlflowException: the store cannot be reached or refuses.
    """

    steps_per_batch = 10

    def __init__(self, uri: str, experiment: str, run: str, run_id: str = "") -> None:
        artifacts = None
        if uri.startswith(_SQLITE):
            file = Path(uri.removeprefix(_SQLITE)).resolve()
            _make_wal(file)
            artifacts = (file.parent / "mlartifacts").as_uri()
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        self.run_id = run_id or self._find(home, run)
        self._client.update_run(self.run_id, status="RUNNING")
        self._params = set(self._client.get_run(self.run_id).data.params)

    def _find(self, experiment: str, run: str) -> str:
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run}'", max_results=1)
        created = found[0] if found else self._client.create_run(experiment, run_name=run, tags={_TAG: run})
        return str(created.info.run_id)

    def taken(self) -> int | None:
        """Unknown to MLflow, and no matter."""
        return None

    def accept(self, batch: Batch) -> None:
        """Send the records' numbers and the parameters that the run does not have yet."""
        metrics = [
            Metric(_name(name), value, round(_number(record, "ts") * 1000), int(_number(record, "step")))
            for record in batch.records
            for name, value in points(record).items()
        ]
        new = {_name(k): str(v)[:_LONGEST_PARAM] for record in batch.records for k, v in parameters(record).items()}
        params = [Param(name, value) for name, value in new.items() if name not in self._params]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_AT_ONCE])
        self._params.update(new)
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics[start : start + _METRICS_AT_ONCE])

    def finish(self, status: str) -> None:
        """Terminate the run; a later process can set it running again."""
        self._client.set_terminated(self.run_id, status.upper())


def _make_wal(file: Path) -> None:
    """Make the file in WAL mode before MLflow creates its tables in it: that halves the time of the first start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(file) as store:
        store.execute("PRAGMA journal_mode=WAL")
        if not store.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            store.execute("VACUUM")
    store.close()


def _name(name: str) -> str:
    """Replace the characters that MLflow refuses in names."""
    return _ODD.sub("_", name)


def _number(record: Record, field: str) -> float:
    value = record.get(field)
    return float(value) if isinstance(value, int | float) else 0.0
