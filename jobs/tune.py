"""Search settings: python jobs/tune.py --config jobs/configs/tune.yaml"""

from rayhmr import command_line
from rayhmr.config import TuneJob


def main(job: TuneJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.tune import tune

    return tune(job)


if __name__ == "__main__":
    command_line.run(TuneJob, main)
