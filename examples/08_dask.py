"""An instance on each worker of a Dask cluster: Dask starts them, a PostgreSQL server shares the work out."""

import os
import time

from dask.distributed import Client

from speval import speval

URL = os.environ.get("SPEVAL_URL", "postgresql:///?table=with_dask")


def square(x):
    time.sleep(0.1)
    return x**2


def instance():
    return speval(square, range(20), URL)


if __name__ == "__main__":
    with Client(n_workers=2, threads_per_worker=1) as client:  # or Client("tcp://scheduler:8786")
        # If a worker dies, another starts its instance again: otherwise Dask would wait for that worker.
        instances = [
            client.submit(instance, workers=[worker], allow_other_workers=True, pure=False)
            for worker in client.nthreads()
        ]
        for counts in client.gather(instances):
            print(f"{counts['completed']} evaluations are completed")
