"""How many processes a load asks for; tests/rayhmr/serve/test_exposure.py sees them come and go."""

from __future__ import annotations

import socket
import time

import pytest
from pydantic import ValidationError
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from hmr.errors import DataError
from rayhmr.config import ServeJob
from rayhmr.serve import exchange, wire
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.autoscale import BY_LOAD, LOAD, replica_options, replicas_for_load
from rayhmr.serve.inference import Prepared
from rayhmr.serve.worker import IDLE_S, Worker

JOB = ServeJob(num_replicas=2, max_replicas=6, max_batch_size=8)


def wanted(loads, now=4):
    """By processes with these loads, of which there are `now`."""
    deployment = DeploymentID(name="model")
    scaling = AutoscalingConfig(**replica_options(JOB, BY_LOAD)["autoscaling_config"])
    told = {ReplicaID(str(n), deployment): float(load) for n, load in enumerate(loads)}
    context = AutoscalingContext(
        deployment_id=deployment, deployment_name="model", app_name="a", current_num_replicas=now,
        target_num_replicas=now, running_replicas=list(told), total_num_requests=0,
        total_queued_requests=None, aggregated_metrics={LOAD: told} if told else {},
        raw_metrics={}, capacity_adjusted_min_replicas=2, capacity_adjusted_max_replicas=6,
        policy_state={}, last_scale_up_time=None, last_scale_down_time=None, current_time=None,
        config=scaling,
    )  # fmt: skip
    return scaling.policy.get_policy()(context)[0]


@pytest.mark.parametrize(
    ("loads", "number"),
    [
        ([8, 8, 8, 8], 4),  # batches are full and nothing waits
        ([16, 16, 16, 16], 8),  # as many wait
        ([4, 4, 4, 4], 2),  # half would do
        ([8, 0], 2),  # two have told: half of all are busy
        ([0, 0, 0, 0], 0),  # Serve keeps the least
        ([], 4),  # nobody has told yet
    ],
)
def test_the_mean_load_is_brought_to_a_full_batch(loads, number):
    assert wanted(loads) == number


def test_serve_takes_the_options():
    scaling = AutoscalingConfig(**replica_options(JOB, BY_LOAD)["autoscaling_config"])
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    assert scaling.policy.get_policy().__name__ == replicas_for_load.__name__
    assert replica_options(ServeJob(num_replicas=3), BY_LOAD) == {"num_replicas": 3}
    with pytest.raises(ValidationError, match="max_replicas=1 is less than num_replicas=2"):
        ServeJob(num_replicas=2, max_replicas=1)


def test_the_load_is_the_batch_and_what_waits_until_nothing_comes(tmp_path, predictor):
    info = ModelInfo.of(predictor, name="tiny", version="1")
    hello = exchange.Introduction(info=info, padding=1.2, max_people=8, generation=0)
    address = str(tmp_path / "models")
    nobody = Prepared(crops=(), n_iter=None, mesh=False, step_meshes=False)
    seen = []

    def compute(items):
        seen.append(worker.load)
        return [DataError("no model here")] * len(items)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        worker = Worker(compute, hello, address)
        worker.start()
        try:
            connection, _ = listener.accept()
            with connection:
                assert wire.receive(connection) is not None
                assert worker.load == 0
                wire.send(connection, *exchange.batch_message([nobody] * 3, waiting=4))
                assert wire.receive(connection) is not None
                assert worker.load == 7
                time.sleep(IDLE_S + 0.2)
                assert worker.load == 0
        finally:
            worker.stop()
    assert seen == [7]
