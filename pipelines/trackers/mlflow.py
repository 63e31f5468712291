"""MLflow: the server that MLFLOW_TRACKING_URI names, or a database in the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from equipoise.pipelines.config import flat
from equipoise.pipelines.trackers.tracker import Point, Tracker, run_id

if TYPE_CHECKING:
    from equipoise.pipelines.run import Run

_BATCH = 1000  # the most that MLflow takes in one call
_TAG = "equipoise.run"


class MLflow(Tracker):
    """One MLflow run through all attempts, found by a tag with the id in tracker.json. Its experiment is
    MLFLOW_EXPERIMENT_NAME, or "equipoise"; its parameters are the run's configuration.
    """

    install = "pip install 'equipoise[mlflow]'"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._client: Any = None
        self._id = ""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        # The small mlflow-skinny comes without what a database takes.
        return ("mlflow",) if os.environ.get("MLFLOW_TRACKING_URI") else ("mlflow", "sqlalchemy", "alembic")

    def held(self) -> dict[str, set[int]]:
        self._connect()
        names = self._client.get_run(self._id).data.metrics
        return {name: {m.step for m in self._client.get_metric_history(self._id, name)} for name in names}

    def called(self, column: str) -> str:
        # MLflow refuses a plus sign in a name.
        return column.replace("+", " and ")

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
        for at in range(0, len(numbers), _BATCH):
            self._client.log_batch(self._id, metrics=numbers[at : at + _BATCH])

    def finish(self) -> None:
        self._client.set_terminated(self._id)

    def _connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # Rows that did not arrive are offered again: no need to hold up the training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        folder = self.run.path / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            folder.mkdir(parents=True, exist_ok=True)
        self._client = client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "equipoise"
        experiment = client.get_experiment_by_name(name)
        place = None if uri else (folder / "artifacts").as_uri()
        number = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=place)
        own = run_id(self.run)
        known = client.search_runs([number], f"tags.`{_TAG}` = '{own}'")
        made = known[0] if known else client.create_run(number, tags={_TAG: own}, run_name=self.run.path.name)
        self._id = made.info.run_id
        client.set_terminated(self._id, "RUNNING")
        # `out` may change between attempts, and MLflow lets no parameter change.
        settings = {k: v for k, v in flat(self.run.config.model_dump(mode="json")).items() if k != "out"}
        client.log_batch(self._id, params=[Param(k, str(v)) for k, v in settings.items() if k not in made.data.params])


TRACKER = MLflow
