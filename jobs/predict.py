"""Meshes for a folder of images: python jobs/predict.py input=images output=predictions"""

from rayhmr import command_line
from rayhmr.config import PredictJob


def main(job: PredictJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.predict import predict

    return predict(job)


if __name__ == "__main__":
    command_line.run(PredictJob, main)
