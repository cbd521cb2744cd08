"""Measure a model on held-out people: python jobs/evaluate.py data=shards"""

from rayhmr import command_line
from rayhmr.config import EvaluateJob


def main(job: EvaluateJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.evaluate import evaluate

    return evaluate(job)


if __name__ == "__main__":
    command_line.run(EvaluateJob, main)
