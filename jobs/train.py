"""Train one model: python jobs/train.py --config jobs/configs/train_cpu.yaml data.path=shards"""

from rayhmr import command_line
from rayhmr.config import TrainJob


def main(job: TrainJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.train import train

    return train(job)


if __name__ == "__main__":
    command_line.run(TrainJob, main)
