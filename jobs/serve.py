"""Host a model behind HTTP, until Ctrl-C: python jobs/serve.py model=registry/hmr@best"""

from rayhmr import command_line
from rayhmr.config import ServeJob


def main(job: ServeJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.serve.host import serve

    return serve(job)


if __name__ == "__main__":
    command_line.run(ServeJob, main)
