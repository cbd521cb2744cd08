"""The file for `serve deploy` is what Ray's schema and our own settings take, and needs a key."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built
from ray.serve.schema import ServeDeploySchema

from hmr.errors import ConfigError
from rayhmr.cluster import free_port
from rayhmr.config import ServeJob
from rayhmr.registry import Registry
from rayhmr.serve import deploy

FILE = Path(__file__).resolve().parents[3] / "platform" / "deploy" / "serve.yaml"


def test_every_key_of_the_file_is_known_and_its_builder_is_ours():
    tree = yaml.safe_load(FILE.read_text())
    schema = ServeDeploySchema.model_validate(tree)
    assert set(tree) <= set(ServeDeploySchema.model_fields)
    (application,) = schema.applications
    assert application.import_path == f"{deploy.__name__}:{deploy.build.__name__}"
    job = ServeJob.model_validate(application.args)
    # The guard's own refusal says more than the proxy's, so it must come first.
    assert schema.http_options.request_timeout_s > job.request_timeout_s


def test_the_builder_makes_replicas_that_roll_over_and_needs_a_key(
    model_reference, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAYHMR_API_KEY", raising=False)
    args = {"model": model_reference, "num_replicas": 2}
    with pytest.raises(ConfigError, match="so it needs a key"):
        built(deploy.build, args)
    (tmp_path / "keys").write_text("x" * 32)
    args["api_key_file"] = str(tmp_path / "keys")
    deployment = built(deploy.build, args)._bound_deployment
    assert (deployment.name, deployment.num_replicas) == ("hmr", 2)
    assert deployment._deployment_config.max_surge_percent == 100
    with pytest.raises(ConfigError, match="serve one model"):
        built(deploy.build, args | {"models": [model_reference]})


SOON_S = 120.0
KEY = {"authorization": "Bearer " + "k" * 32}


class Deployed:
    """The file's application on a cluster, by `serve` itself."""

    def __init__(self, folder, dashboard, registry):
        self._file, self._dashboard = folder / "serve.yaml", dashboard
        (folder / "keys").write_text("k" * 32)
        self._tree = yaml.safe_load(FILE.read_text())
        self._tree["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
        self._args = {
            "api_key_file": str(folder / "keys"), "num_replicas": 1, "num_cpus": 0.5,
            "inference_protocol": True,
        }  # fmt: skip
        self._registry = registry
        self.url = f"http://127.0.0.1:{self._tree['http_options']['port']}"

    def deploy(self, version):
        tree = copy.deepcopy(self._tree)
        tree["applications"][0]["args"] = self._args | {"model": f"{self._registry}/tiny@{version}"}
        self._file.write_text(yaml.safe_dump(tree))
        self._serve("deploy", str(self._file))

    def status(self):
        """Of the application, and what Serve says about it. Not by `ray.serve` in this process,
        which would keep its handle to a controller that ends with this test."""
        found = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=60).json()
        application = found["applications"]["rayhmr"]
        return application["status"], str(application)

    def shutdown(self):
        self._serve("shutdown", "--yes")

    def _serve(self, *words):
        command = [str(Path(sys.executable).with_name("serve")), *words, "-a", self._dashboard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, photo):
        headers = KEY | {"content-type": "image/jpeg"}
        return httpx.post(f"{self.url}/v1/predict", content=photo, headers=headers, timeout=60)

    def text(self, path):
        answer = httpx.get(self.url + path, headers=KEY, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.text

    def version(self, photo):
        """That answers; none while nothing does."""
        try:
            answer = self.ask(photo)
        except httpx.TransportError:
            return None
        return answer.json()["model"]["version"] if answer.status_code == 200 else None


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.ray
@pytest.mark.chaos
def test_serve_deploy_hosts_a_version_rolls_over_and_keeps_the_old_one_from_a_bad_one(
    local_cluster, bundle, tmp_path, photo
):
    registry = Registry(str(tmp_path / "registry"))
    versions = [registry.register("tiny", bundle) for _ in range(3)]
    with (tmp_path / "registry/tiny" / str(versions[2]) / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x3f")
    deployed = Deployed(tmp_path, local_cluster.dashboard_url, registry.uri)
    done, statuses = threading.Event(), []

    def asks():
        while not done.wait(0.05):
            statuses.append(deployed.ask(photo).status_code)

    asking = threading.Thread(target=asks)
    try:
        deployed.deploy(versions[0])
        until(lambda: deployed.version(photo) == "1")
        assert httpx.post(f"{deployed.url}/v1/predict", content=photo).status_code == 401
        assert "tiny" in deployed.text("/v2/models/tiny")
        assert "rayhmr_serve_model_info{" in deployed.text("/metrics")
        asking.start()
        deployed.deploy(versions[1])
        until(lambda: deployed.version(photo) == "2")
        deployed.deploy(versions[2])
        until(lambda: deployed.status()[0] == "DEPLOY_FAILED")
        assert "sha256" in deployed.status()[1]
        assert deployed.version(photo) == "2"
    finally:
        done.set()
        if asking.ident is not None:
            asking.join()
        deployed.shutdown()
    assert len(statuses) > 20
    assert set(statuses) == {200}
