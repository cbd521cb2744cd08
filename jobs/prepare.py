"""Turn a source into person shards: python jobs/prepare.py source=synthetic output=shards"""

from rayhmr import command_line
from rayhmr.config import PrepareJob


def main(job: PrepareJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.data.prepare import prepare

    return prepare(job)


if __name__ == "__main__":
    command_line.run(PrepareJob, main)
