"""The application over a small real model: in this process, and behind a real port."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hmr.body_arrays import body_from_path
from hmr.checkpoint import load_bundle
from hmr.crops import encode_jpeg
from hmr.synthetic import Generator
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.api import build_app
from rayhmr.serve.guard import Limits
from rayhmr.serve.inference import recover_batch
from rayhmr.serve.served import ServedModel, Service


@pytest.fixture(scope="session")
def predictor(bundle):
    return load_bundle(bundle)


@pytest.fixture(scope="session")
def photo():
    """A person in the box 60, 20, 156, 116 of a picture of 200 x 140 pixels."""
    (person,) = Generator(body_from_path("embedded"), "easy", 96, 5, "test").samples([1])
    frame = np.full((140, 200, 3), 90, np.uint8)
    frame[20:116, 60:156] = person.image
    return encode_jpeg(frame)


def served(predictor, name, version="1", **more):
    """A model that recovers each picture by itself, in a thread."""

    async def recover(work):
        (result,) = await asyncio.to_thread(recover_batch, predictor, [work])
        if isinstance(result, Exception):
            raise result
        return result

    info = ModelInfo.of(predictor, name=name, version=version, aliases=("best",))
    return ServedModel(info=info, recover=recover, is_ready=lambda: True, **more)


@pytest.fixture(scope="session")
def app_of(predictor):
    """Makes an application; models: by name (one called tiny), options: of `build_app`, limits."""
    threads = ThreadPoolExecutor(2)

    def make(models=None, *, options=None, **limits):
        models = models or {"tiny": predictor}
        service = Service(
            models={name: served(one, name) for name, one in models.items()}, threads=threads
        )
        defaults = {"max_body_bytes": 200_000, "request_timeout_s": 20.0, "max_requests": 8}
        return build_app(service, Limits(**(defaults | limits)), **(options or {}))

    yield make
    threads.shutdown()


@pytest.fixture(scope="session")
def live():
    """Puts an application behind a free port of this machine; gives its address."""
    servers = []

    def start(app):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread, listener))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        httpx.get(f"{address}/healthz", trust_env=False)
        return address

    yield start
    for server, thread, listener in servers:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def make_certificate(tmp_path_factory):
    """Makes certificates for 127.0.0.1 that nobody else has signed; gives the paths of one and of
    its key as texts."""

    def make(name="one", password=None):
        return certificate(tmp_path_factory.mktemp("tls"), name, password)

    return make


def certificate(folder, name, password):
    key = ec.generate_private_key(ec.SECP256R1())
    owner = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(owner)
        .issuer_name(owner)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    encryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(form))
    paths[1].write_bytes(key.private_bytes(form, serialization.PrivateFormat.PKCS8, encryption))
    return str(paths[0]), str(paths[1])
