"""What `serve deploy platform/deploy/serve.yaml` builds, on a cluster that goes on without us.

Ray's own proxies listen, on every node, with the address of the file's `http_options`. A new
version is rolled out by naming it in the file and deploying that again: Ray starts it beside the
old one, which stays when the new one does not pass its check.
"""

# Not `from __future__ import annotations`: Ray looks at the class of the builder's argument.

from ray import serve

from hmr.errors import ConfigError
from rayhmr.config import ServeJob
from rayhmr.serve.app import proxied_application
from rayhmr.serve.front import FrontSettings
from rayhmr.serve.host import limits_of, read_keys
from rayhmr.serve.rollout import slots_of

EVERYWHERE = "0.0.0.0"


def build(job: ServeJob) -> serve.Application:
    """The application. ConfigError without a key, since the file's own address is not known here
    and may be anybody's."""
    if job.models:
        raise ConfigError("models: Ray's proxies serve one model; leave the setting out")
    keys = read_keys(job.model_copy(update={"host": EVERYWHERE}))
    (slot,) = slots_of(job)
    front = FrontSettings(
        host=EVERYWHERE, port=job.port, address="", models=(slot.name,),
        limits=limits_of(job, keys), threads=1, inference_protocol=job.inference_protocol,
    )  # fmt: skip
    return proxied_application(job, slot.settings, front)
