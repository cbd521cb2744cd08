"""Can this cluster train? python jobs/cluster_check.py storage=s3://b/runs scaling.num_workers=8"""

from rayhmr import command_line
from rayhmr.config import ClusterCheckJob


def main(job: ClusterCheckJob) -> dict:
    """Import late, so that --help is quick."""
    from rayhmr.cluster_check import cluster_check

    return cluster_check(job)


if __name__ == "__main__":
    command_line.run(ClusterCheckJob, main)
