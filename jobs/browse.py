"""Look at people: python jobs/browse.py input=shards [model=registry/hmr@best] [output=x.html]"""

from rayhmr import command_line
from rayhmr.config import BrowseJob


def main(job: BrowseJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.browse import browse

    return browse(job)


if __name__ == "__main__":
    command_line.run(BrowseJob, main)
