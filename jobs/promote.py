"""Move an alias that services follow, or move it back: python jobs/promote.py version=previous"""

from rayhmr import command_line
from rayhmr.config import PromoteJob


def main(job: PromoteJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.promote import promote

    return promote(job)


if __name__ == "__main__":
    command_line.run(PromoteJob, main)
