"""The three figures of a model: python jobs/figures.py model=registry/hmr@best [image=photo.jpg]"""

from rayhmr import command_line
from rayhmr.config import FiguresJob


def main(job: FiguresJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.figures import figures

    return figures(job)


if __name__ == "__main__":
    command_line.run(FiguresJob, main)
