"""Say hello twenty times, shared out among all instances that reach one PostgreSQL server, on any hosts."""

import os
import platform
import time

from speval import speval

# As libpq has it, with the name of a table, which is made; the rest may also come from PGHOST, PGUSER ...
URL = os.environ.get("SPEVAL_URL", "postgresql:///?table=hello_world")


def func(arg):
    print(f"Hello world: {arg}")
    time.sleep(0.1)
    return platform.node()


counts = speval(func, range(20), URL)
print(f"{counts['completed']} evaluations are completed")
