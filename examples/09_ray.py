"""An instance on each CPU of a Ray cluster: Ray starts them, a PostgreSQL server shares the work out."""

import os
import time

import ray

from speval import speval

URL = os.environ.get("SPEVAL_URL", "postgresql:///?table=with_ray")


def square(x):
    time.sleep(0.1)
    return x**2


@ray.remote  # which means a CPU for each call, and another call if a process dies
def instance():
    return speval(square, range(20), URL)


ray.init(num_cpus=2)  # or, on a cluster, ray.init("auto")
instances = [instance.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
for counts in ray.get(instances):
    print(f"{counts['completed']} evaluations are completed")
