"""Every path may lie in an object store: against a server of this test that speaks S3 (moto's), in
a process of its own, which checks keys and rights like the real one where a test wants that."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from hmr.errors import BundleError, ConfigError, DataError
from hmr.manifest import write_manifest
from rayhmr.cluster import free_port, open_here
from rayhmr.config import (
    EvaluateJob,
    PredictJob,
    PrepareJob,
    PromoteJob,
    SyntheticConfig,
    TrainJob,
)
from rayhmr.data.prepare import prepare
from rayhmr.data.schema import read_info
from rayhmr.data.sources.columns import Columns, npz_units
from rayhmr.evaluate import evaluate
from rayhmr.predict import predict
from rayhmr.prediction_parts import MANIFEST
from rayhmr.promote import promote
from rayhmr.registry import Registry, resolve
from rayhmr.storage import Folder, StorageError, joined, split
from rayhmr.train import train

REGION = "us-east-1"


class Store:
    """The server, with one bucket."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.client("s3").create_bucket(Bucket="bucket")

    def uri(self, path: str, bucket: str = "bucket") -> str:
        return f"s3://{bucket}/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def client(self, service: str):
        # Not by boto3's own session, which keeps the first keys that it finds.
        return boto3.Session().client(service, endpoint_url=self.url, region_name=REGION)

    def new_user(self, name: str, *actions: str) -> tuple[str, str]:
        """Key and secret of one who may do this."""
        iam = self.client("iam")
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def check_rights(self) -> None:
        """From now on."""
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
        )
        open_here(request, timeout=10).close()


def started_store(folder):
    port = free_port()
    with (folder / "store.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                open_here(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                said = (folder / "store.log").read_text()
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
        yield Store(port)
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    yield from started_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A store that knows two users: `store.users` gives their keys."""
    for store in started_store(tmp_path_factory.mktemp("strict")):
        store.users = {
            "writer": store.new_user("writer", "s3:*"),
            "reader": store.new_user("reader", "s3:Get*", "s3:List*"),
            "stranger": ("AKIANOBODYKNOWSTHIS0", "wrong"),
        }
        store.check_rights()
        yield store


@pytest.fixture
def acting_as(strict, monkeypatch):
    def act(user):
        key, secret = strict.users[user]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return act


@pytest.fixture
def new_bundle(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "weights.bin").write_text("weights")
    write_manifest(folder, {"kind": "bundle"})
    return folder


# Names


def test_what_is_in_a_folder_has_its_name_before_the_query():
    query = "?endpoint_override=store:9000&scheme=http"
    assert joined(f"s3://bucket/a/{query}", "b") == f"s3://bucket/a/b{query}"
    assert split(f"s3://bucket/a/b{query}") == (f"s3://bucket/a{query}", "b")
    assert joined("s3://bucket", "b") == "s3://bucket/b"
    assert joined("/", "b") == "/b"
    assert joined("runs/what?", "b") == "runs/what?/b", "a local name may have a question mark"
    assert split("runs/what?/b/") == ("runs/what?", "b")
    assert split("b") == ("", "b")


def test_files_come_back(store):
    folder = Folder(store.uri("files/"))
    assert folder.location == store.uri("files")
    assert folder.names() == []
    folder.write_json("below/a.json", [1])
    assert folder.names() == ["below"]
    assert Folder(folder.at("below")).read_json("a.json") == [1]
    assert folder.size("below/a.json") == len(b"[\n  1\n]\n")
    folder.remove("below")
    assert not folder.exists("below/a.json")


# Jobs


@pytest.mark.ray
@pytest.mark.chaos
def test_all_jobs_with_everything_in_a_store(local_cluster, store, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shards, registry = store.uri("shards"), store.uri("registry")
    people = SyntheticConfig(image_size=32, train=32, val=16, test=8)
    prepared = prepare(PrepareJob(output=shards, rows_per_file=64, synthetic=people))
    assert prepared["rows"] == {"train": 32, "val": 16, "test": 8}
    job = TrainJob.model_validate(
        {
            "name": "run", "storage": store.uri("runs"), "registry": registry,
            "register_as": "person", "data": {"path": shards, "decode_threads": 1},
            "model": {"encoder_width": 4, "image_size": 32, "hidden": 32},
            "train": {"epochs": 1, "batch_size": 32}, "scaling": {"num_workers": 1},
        }
    )  # fmt: skip
    trained = train(job)
    assert trained["bundle"] == store.uri("runs/run/bundle")
    promoted = promote(PromoteJob(model=joined(registry, "person"), alias="live", version="best"))
    assert (promoted["version"], promoted["before"]) == (1, None)
    model = joined(registry, "person@live")
    question = EvaluateJob(model=model, data=shards, split="val", output=store.uri("evaluation"))
    measured = evaluate(question)
    # The same people and the same weights as in the validation of the training.
    assert measured["pa_mpjpe_mm"] == pytest.approx(trained["pa_mpjpe_mm"], abs=0.1)
    table = Folder(store.uri("evaluation")).read("people.csv").decode()
    assert len(list(csv.DictReader(io.StringIO(table)))) == 16
    asked = PredictJob(
        model=model, input=shards, split="test", num_actors=1, output=store.uri("predictions")
    )
    answered = predict(asked)
    assert (answered["predicted"], answered["rejected"]) == (8, 0)
    output = Folder(answered["output"])
    assert {"people.parquet", MANIFEST, "overlays"} <= set(output.names())
    with output.open("people.parquet") as file:
        assert len(pq.read_table(file)) == 8
    # What a path would become if it were taken for a local one.
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("s3:")]
    objects = store.client("s3").list_objects_v2(Bucket="bucket")["Contents"]
    names = {thing["Key"].partition("/")[0] for thing in objects}
    assert names >= {"shards", "runs", "registry", "evaluation", "predictions"}
    assert not [name for name in names if "?" in name or "=" in name]


def test_a_prediction_replaces_nothing_else(store, bundle):
    folder = Folder(store.uri("notes"))
    folder.write("notes.txt", b"mine")
    Folder(store.uri("pictures")).write("a.jpg", b"no picture")
    job = PredictJob(model=str(bundle), input=store.uri("pictures"), output=store.uri("notes"))
    with pytest.raises(ConfigError, match=r"holds files and no .*; choose another folder"):
        predict(job)
    assert folder.names() == ["notes.txt"]
    inside = store.uri("pictures/predicted")
    with pytest.raises(ConfigError, match="lies inside input="):
        predict(job.model_copy(update={"output": PredictJob(output=inside).output}))


def test_label_files_are_read_in_pieces(store):
    content = io.BytesIO()
    numbers = np.random.default_rng(0).normal(size=(50, 72))
    names = np.array([f"{row}.jpg" for row in range(50)])
    np.savez_compressed(content, imgname=names, pose=numbers)
    folder = Folder(store.uri("labels"))
    folder.write("people.npz", content.getvalue())
    for labels in (folder.location, folder.at("people.npz")):
        units = npz_units(labels, "val", 20)
        assert [(u.file, u.start, u.stop) for u in units] == [
            ("people.npz", 0, 16), ("people.npz", 16, 33), ("people.npz", 33, 50)
        ]  # fmt: skip
        found = np.concatenate([Columns(labels, unit).numbers("pose", 72) for unit in units])
        assert np.array_equal(found, numbers)
    folder.write("people.npz", content.getvalue()[:200])
    with pytest.raises(DataError, match=r"people\.npz.*cannot be read .*Get the file again"):
        npz_units(folder.location, "train", 20)


# Registry


def test_writers_of_different_aliases_lose_none(store, new_bundle):
    registry = Registry(store.uri("aliases"))
    assert registry.register("hmr", new_bundle) == 1
    names = [f"alias-{number}" for number in range(12)]
    together = threading.Barrier(4)

    def write(mine):
        other = Registry(store.uri("aliases"))
        together.wait(30)
        for name in mine:
            other.set_alias("hmr", name, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [names[start::4] for start in range(4)]))
    assert registry.aliases("hmr") == dict.fromkeys([*names, "latest"], 1)


def test_a_reference_has_its_query_at_the_end(store, new_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / "cache"))
    registry = Registry(store.uri("references"))
    for _ in range(2):
        registry.register("hmr", new_bundle)
    registry.set_alias("hmr", "best", 1)
    registry.set_alias("hmr", "best", 2)
    assert registry.previous("hmr", "best") == 1
    for reference in ("best", "1", "latest"):
        folder = resolve(store.uri(f"references/hmr@{reference}"))
        assert (folder / "weights.bin").read_text() == "weights"
    with pytest.raises(BundleError, match="no version or alias 'worst'; versions: 1, 2"):
        resolve(store.uri("references/hmr@worst"))


# What goes wrong


def test_a_bucket_that_is_not_there(store, new_bundle):
    missing = store.uri("data", bucket="nowhere")
    said = r"s3://nowhere/data.*: there is no such bucket; create it, or correct the address"
    with pytest.raises(StorageError, match=said):
        read_info(missing)
    with pytest.raises(StorageError, match=said):
        Folder(missing).write("a", b"1")
    with pytest.raises(StorageError, match=r"s3://nowhere/data.*: there is no such bucket"):
        Registry(missing).register("hmr", new_bundle)
    with pytest.raises(StorageError, match=said):
        prepare(PrepareJob(output=missing))


class NotFound(BaseHTTPRequestHandler):
    """What Google's store says of a bucket that is not there, whatever is asked of it."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}'
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *words):
        pass


def test_a_bucket_of_google_that_is_not_there():
    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        missing = f"gs://anonymous@nowhere/data?{address}&retry_limit_seconds=5"
        said = r"nowhere/data.*: there is no such bucket; create it, or correct the address"
        for ask in (lambda: Folder(missing).write("a", b"1"), Folder(missing).names,
                    lambda: read_info(missing)):  # fmt: skip
            with pytest.raises(StorageError, match=said):
                ask()
        assert not Folder(missing).exists("a")
        server.shutdown()


def test_wrong_credentials(strict, acting_as):
    acting_as("stranger")
    folder = Folder(strict.uri("data"))
    with pytest.raises(
        StorageError,
        match=r"s3://bucket/data.*: the store does not know these credentials; set AWS_ACCESS_KEY",
    ):
        folder.names()
    for ask in (lambda: folder.read("a"), lambda: folder.write("a", b"1"), folder.names,
                lambda: Registry(strict.uri("registry")).names()):  # fmt: skip
        with pytest.raises(StorageError, match="credentials"):
            ask()


def test_a_store_that_may_only_be_read(strict, acting_as, new_bundle):
    acting_as("writer")
    Folder(strict.uri("data")).write("a", b"1")
    assert Registry(strict.uri("registry")).register("hmr", new_bundle) == 1
    acting_as("reader")
    folder, registry = Folder(strict.uri("data")), Registry(strict.uri("registry"))
    assert folder.read("a") == b"1"
    assert registry.versions("hmr") == [1]
    denied = r": the credentials are wrong, or do not allow to write here; use some that do"
    with pytest.raises(StorageError, match=r"s3://bucket/data/b\?" + f".*{denied}"):
        folder.write("b", b"1")
    with pytest.raises(StorageError, match=r"data/a\?.*do not allow to delete here"):
        folder.remove("a")
    for change in (lambda: registry.register("hmr", new_bundle),
                   lambda: registry.set_alias("hmr", "best", 1)):  # fmt: skip
        with pytest.raises(StorageError, match=f"s3://bucket/registry.*{denied}"):
            change()
    with pytest.raises(StorageError, match=denied):
        prepare(PrepareJob(output=strict.uri("shards")))
    with pytest.raises(ClientError, match="AccessDenied"):  # the store's own word for it
        strict.client("s3").put_object(Bucket="bucket", Key="b", Body=b"1")


def test_a_store_that_does_not_answer():
    silent = f"s3://bucket/data?endpoint_override=127.0.0.1:{free_port()}&scheme=http"
    with pytest.raises(
        StorageError, match="the store does not answer; check the address, endpoint"
    ):
        Folder(silent).exists("a")


def test_a_local_folder_that_may_only_be_read():
    """The kernel's own, where not even the superuser makes files."""
    with pytest.raises(StorageError, match="/sys/a: the file system does not allow to write here"):
        Folder("/sys").write("a", b"1")
