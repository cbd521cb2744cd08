"""Send a job to a cluster, and again when it fails:
python jobs/submit.py --address http://head:8265 --retries 3 -- python jobs/train.py name=run ...
"""

import argparse
import json
import os
import sys
from pathlib import Path

from hmr.errors import ConfigError, HmrError

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Parse, send, follow; 0 when the job has succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="the cluster's dashboard (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--runtime-env", default=str(ROOT / "jobs" / "runtime_env.yaml"), metavar="FILE",
        help="what is sent with the job (default: this project's code)",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="further attempts (default: 0)"
    )
    parser.add_argument("entrypoint", nargs="+", help="after --: the command")
    given = parser.parse_args()
    from rayhmr.submit import submit

    try:
        result = submit(
            given.entrypoint, address=given.address, runtime_env=given.runtime_env,
            retries=given.retries, root=ROOT,
        )  # fmt: skip
    except HmrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
