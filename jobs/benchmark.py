"""Measure speed: python jobs/benchmark.py [body] [synthetic] [data] [train] [predict] …"""

from rayhmr import command_line
from rayhmr.config import BenchmarkJob


def main(job: BenchmarkJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.benchmark import benchmark

    return benchmark(job)


if __name__ == "__main__":
    command_line.run(BenchmarkJob, main, words="what", switches={"--serve": "chaos_of=serve"})
