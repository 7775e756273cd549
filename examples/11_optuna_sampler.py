"""Let another library suggest: Optuna's CMA-ES, shared out among the instances like any space."""

import json
import os
import tempfile

import optuna

from speval import load_evals, speval

DATABASE = os.path.join(tempfile.gettempdir(), "11_optuna_sampler.db")
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Sampled:
    """An adaptive space: whatever an Optuna sampler asks for next, `n` times in all."""

    def __init__(self, space, n, sampler):
        self.space, self.n, self.study = space, n, optuna.create_study(sampler=sampler)
        self.asked, self.told = {}, set()

    def __len__(self):
        return self.n

    def suggest(self, history):
        for e in history:
            if e["status"] == "completed" and e["name"] not in self.told:
                self.told.add(e["name"])
                trial = self.asked.pop(json.dumps(e["args"]), None)  # None: another instance has asked
                trial and self.study.tell(trial, e["result"])
        trial = self.study.ask(self.space)
        self.asked[json.dumps(trial.params)] = trial
        return trial.params


if __name__ == "__main__":
    axes = {name: optuna.distributions.FloatDistribution(-5, 5) for name in "xyz"}
    space = Sampled(axes, 200, optuna.samplers.CmaEsSampler(seed=1))
    speval(lambda args: sum((value - 1) ** 2 for value in args.values()), space, DATABASE)
    print(f"least of 200: {min(e['result'] for e in load_evals(DATABASE)):.1g}")
