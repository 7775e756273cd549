"""Start three instances and kill one of them (kill -9) in mid evaluation: the others do its work."""

import os
import subprocess
import sys
import tempfile
import time

from speval import load_evals, speval


def func(arg):
    print(f"evaluation {arg}", flush=True)
    time.sleep(0.5)
    return arg**2


def main(fname):
    start = [sys.executable, __file__, fname]
    victim = subprocess.Popen(start, stdout=subprocess.PIPE, text=True)
    instances = [victim]
    try:
        at_work_on = victim.stdout.readline().strip()
        instances += [subprocess.Popen(start, stdout=subprocess.DEVNULL) for _ in range(2)]
        victim.kill()
        print(f"killed an instance in the middle of {at_work_on}")
        for instance in instances:
            print(f"an instance ended with {instance.wait(timeout=60)}")
    finally:
        for instance in instances:
            instance.kill()
    for e in load_evals(fname):
        print("{name}: {status}, result {result}, attempt {attempt}, losses {losses}".format(**e))


if len(sys.argv) > 1:
    speval(func, range(6), sys.argv[1])
else:
    with tempfile.TemporaryDirectory() as folder:
        main(os.path.join(folder, "evals.db"))
