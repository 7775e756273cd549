"""Print the results that 02_store_results.py has stored so far, also while it runs."""

import os
import tempfile
import time

from speval import load_evals

DATABASE = os.path.join(tempfile.gettempdir(), "02_store_results.db")

evals = load_evals(DATABASE, "completed")
for e in evals:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(e["updated"]))
    print(f"Evaluation {e['name']}. Completed on {when}. Returned {e['result']:g}.")

if evals:
    print(f"Mean: {sum(e['result'] for e in evals) / len(evals):g}")
