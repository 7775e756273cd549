"""Say hello twenty times, shared out among all instances of this script that are started."""

import os
import tempfile
import time

from speval import speval

DATABASE = os.path.join(tempfile.gettempdir(), "01_hello_world.db")


def func(arg):
    print(f"Hello world: {arg}")
    time.sleep(0.1)


counts = speval(func, range(20), DATABASE)
print(f"{counts['completed']} evaluations are completed")
