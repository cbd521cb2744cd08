"""The whole platform on synthetic people, on this machine: python jobs/demo.py [output=demo]"""

from rayhmr import command_line
from rayhmr.config import DemoJob


def main(job: DemoJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.demo import demo

    return demo(job)


if __name__ == "__main__":
    command_line.run(DemoJob, main, default_config="jobs/configs/demo.yaml")
