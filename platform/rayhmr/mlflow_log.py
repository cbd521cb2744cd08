"""A run's settings, curves and pictures in MLflow, beside the files of `RunLog`.

The client is the optional package mlflow-skinny. A thread of its own talks to the server, so that
nobody waits for it, and a server that is lost costs points of curves, not the run.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from hmr.errors import ConfigError
from rayhmr.storage import Folder
from rayhmr.telemetry import PICTURES, numbers_of, say

EXPERIMENT = "rayhmr"
RECORD = "mlflow.json"
"""File in the run's folder with the id of its MLflow run."""
WAITING = 1000
"""Facts kept for a slow server; older ones are dropped."""
PATIENCE_S = 30.0
"""How long the end of a run waits for the server to take the last facts."""
_BATCH = {"metrics": 1000, "params": 100}
"""What MLflow takes in one request."""
_DEFAULTS = {
    # Its own are 7 tries of 120 s; and what a run does is nobody's business unless asked for.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip


def check_mlflow(uri: str) -> None:
    """ConfigError unless MLflow's client is installed and finds a server or a file at this URI."""
    client = _client(uri)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        raise _unreachable(uri, error) from error


def _client(uri: str) -> Any:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(
            f"mlflow={_public(uri)}: MLflow's client cannot be imported ({error}); install it with "
            "pip install 'rayhmr[mlflow]', or leave mlflow out"
        ) from error
    for library in ("mlflow", "alembic"):  # they tell of every table they make
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"mlflow={_public(uri)}: cannot be used ({_public(str(error))}); give the address of a "
        "server that runs (http://host:port) or of a file (sqlite:////folder/mlflow.db)"
    )


def _public(text: str) -> str:
    """The text without passwords in addresses."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(a.b.c, value) for every leaf of nested settings, as text."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


class MlflowLog:
    """The MLflow run of a training run: the same one again when the training resumes.

    uri: MLflow's tracking URI. folder: the run's. name: of the run. settings: shown as parameters;
    they are set once. Points of steps that a resumed run does again stand beside the old ones,
    which MLflow cannot take back. ConfigError when the run cannot be opened.
    """

    def __init__(self, uri: str, folder: Folder, name: str, settings: dict[str, Any]) -> None:
        self._client, self._uri = _client(uri), uri
        try:
            self.run_id = self._resumed(folder) or self._created(folder, name, settings)
        except Exception as error:
            raise _unreachable(uri, error) from error
        self._facts: deque[dict[str, Any]] = deque(maxlen=WAITING)
        self._changed, self._ended, self._failed = threading.Condition(), False, False
        # A daemon, because a server that hangs must not keep the process.
        self._thread = threading.Thread(target=self._send_all, name="rayhmr-mlflow", daemon=True)
        self._thread.start()

    def _resumed(self, folder: Folder) -> str | None:
        from mlflow.exceptions import MlflowException

        if not folder.exists(RECORD):
            return None
        run_id = str(folder.read_json(RECORD)["run_id"])
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            say(f"MLflow run {run_id} cannot go on ({_public(str(error))}); a new one begins")
            return None
        return run_id

    def _created(self, folder: Folder, name: str, settings: dict[str, Any]) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            self._client.create_experiment(EXPERIMENT, _artifacts_of(self._uri))
            if experiment is None
            else experiment.experiment_id
        )
        run_id = str(self._client.create_run(experiment_id, run_name=name).info.run_id)
        params = [Param(key, value) for key, value in flat(settings)]
        for begin in range(0, len(params), size := _BATCH["params"]):
            self._client.log_batch(run_id, params=params[begin : begin + size])
        folder.write_json(RECORD, {"experiment": EXPERIMENT, "run_id": run_id})
        return run_id

    def write(self, facts: dict[str, Any]) -> None:
        """Hand over one fact; returns at once. A picture must be PNG bytes."""
        if facts["kind"] == "pictures" or numbers_of(facts):
            with self._changed:
                self._facts.append(facts | {"written": time.time()})
                self._changed.notify()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._facts or self._ended)
                facts = list(self._facts)
                self._facts.clear()
                if not facts:
                    return
            try:
                self._send(facts)
            except Exception as error:
                if not self._failed:
                    say(f"MLflow does not answer ({_public(str(error))}); the run goes on")
                self._failed = True

    def _send(self, facts: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, float(value), int(1000 * one["written"]), int(one["step"]))
            for one in facts
            for name, value in numbers_of(one).items()
        ]
        for begin in range(0, len(points), size := _BATCH["metrics"]):
            self._client.log_batch(self.run_id, metrics=points[begin : begin + size])
        for one in facts:
            if one["kind"] == "pictures":
                with tempfile.TemporaryDirectory(prefix="rayhmr-mlflow-") as folder:
                    picture = Path(folder) / f"step-{int(one['step']):08d}.png"
                    picture.write_bytes(one["image"])
                    self._client.log_artifact(self.run_id, str(picture), PICTURES)

    def __enter__(self) -> MlflowLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait a while for the last facts, and say how the run ended."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            say(f"MLflow took too long; {len(self._facts)} facts and the run's end are not there")
            return
        stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
        status = "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception as problem:
            if not self._failed:
                say(f"MLflow does not answer ({_public(str(problem))})")


def _artifacts_of(uri: str) -> str | None:
    """Where an experiment of a database file keeps its files: beside it, not in the folder where
    the command was given. A server decides for itself."""
    scheme, _, path = uri.partition(":///")
    if not scheme.startswith("sqlite") or not path:
        return None
    return str(Path(path).absolute().parent / "mlartifacts")
