"""The search of chapter 4.2: which stages, in which order, how strong.

``python -m dlopt_helpers.chapters.pipeline_search --trials 100`` goes on from where the last call stopped.
Calls at the same time, on one machine or on many with a common folder, work on the same search.
"""

import argparse
from pathlib import Path

import optuna
import pandas as pd

from dlopt_helpers.chapters.pipeline_runs import folder as common_folder
from dlopt_helpers.chapters.pipeline_tasks import SEEDS, start, task
from dlopt_helpers.pipeline import (
    StageFailed,
    distil,
    factorise,
    prune_neurons,
    prune_weights,
    quantize,
    run,
    share_weights,
)

LONGEST = 4  # stages
TRAINING = {"steps": 2_000, "rate": 0.005}


def distil_one(trial, name):
    """Suggest a new student."""
    network = trial.suggest_categorical(f"{name} network", ["mlp", "cnn"])
    widest = {"mlp": 128, "cnn": 32}[network]
    return distil(network, trial.suggest_int(f"{name} {network} width", 6, widest, log=True), **TRAINING)


# What a stage may be, and how strong.
KINDS = {
    "distil": distil_one,
    "prune neurons": lambda trial, name: prune_neurons(
        round(trial.suggest_float(f"{name} keep", 0.05, 0.8, log=True), 3), **TRAINING
    ),
    "prune weights": lambda trial, name: prune_weights(
        round(trial.suggest_float(f"{name} share", 0.3, 0.95), 3), **TRAINING
    ),
    "factorise": lambda trial, name: factorise(
        round(trial.suggest_float(f"{name} rank", 0.05, 0.5, log=True), 3), **TRAINING
    ),
    "quantize": lambda trial, name: quantize(trial.suggest_categorical(f"{name} bits", [4, 8]), **TRAINING),
    "share weights": lambda trial, name: share_weights(trial.suggest_int(f"{name} code bits", 2, 5)),
}


def stages(trial):
    """Return the stages that an Optuna trial suggests.

    Example:
      >>> fixed = optuna.trial.FixedTrial({"stages": 1, "1": "quantize", "1 bits": 4})
      >>> print(*stages(fixed))
      quantize(bits=4, steps=2000, rate=0.005)
    """
    names = [str(number + 1) for number in range(trial.suggest_int("stages", 1, LONGEST))]
    return [KINDS[trial.suggest_categorical(name, list(KINDS))](trial, name) for name in names]


def search(trials, folder=None, seed=None):
    """Try so many more pipelines, and return the Optuna study with all that have been tried.

    Three objectives: accuracy, bytes of the file, and the time for a batch of 64 as a share of the start's.
    Each trial carries the rows of its stages (``user_attrs["rows"]``); one that failed says why
    (``user_attrs["failed"]``).

    Args:
      trials: how many to try.
      folder: where the study and the networks are kept.
      seed: of the sampler; give none to workers that share a folder.
    """
    folder = Path(folder or common_folder())
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search.log"))
    study = optuna.create_study(
        study_name="mlp1024",
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=seed),
        directions=["maximize", "minimize", "minimize"],
        load_if_exists=True,
    )
    begin, examples = start("mlp1024", 0), task("strict", 0)

    def tried(trial):
        try:
            rows = run(begin, stages(trial), examples, folder)
        except StageFailed as failed:
            trial.set_user_attr("failed", str(failed))
            raise
        trial.set_user_attr("rows", rows.to_dict("records"))
        last = rows.iloc[-1]
        return last.accuracy, last.bytes, 1 / last["faster 64"]

    study.optimize(tried, n_trials=trials, catch=StageFailed)
    return study


def searched(study):
    """Return the rows of all trials that succeeded, as :func:`~.pipeline_runs.made` returns them."""
    found = [
        pd.DataFrame(trial.user_attrs["rows"]).assign(
            group="search", recipe=str(trial.number), seed=0, number=lambda rows: range(len(rows))
        )
        for trial in study.trials
        if trial.state.is_finished() and trial.values
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def corners(rows):
    """Return the numbers of three trials on the front: the most accurate one, and the smallest and the
    fastest of those that are at least as accurate as the start.

    Args:
      rows: of :func:`searched`.
    """
    runs = rows.groupby("recipe", sort=False)
    begin, last = rows.accuracy.iloc[0], rows.loc[runs.number.idxmax()].set_index("recipe")
    good = last[last.accuracy >= begin]
    found = good.accuracy.idxmax(), good.bytes.idxmin(), good["faster 64"].idxmax()
    return dict(zip(["most accurate", "smallest", "fastest"], map(int, found), strict=True))


def repeated(study, rows, seeds=SEEDS, folder=None):
    """Run the :func:`corners` of a study again from other starts, with other students and other teachers.

    Args:
      study: of :func:`search`.
      rows: of :func:`searched`, timed again if the search shared its machine with other work.
      seeds: of the starts.
      folder: where the networks are kept.

    Returns:
      Rows as :func:`~.pipeline_runs.made` returns them, of the group ``corners``.
    """
    found = []
    for name, number in corners(rows).items():
        for seed in seeds:
            again = stages(optuna.trial.FixedTrial(study.trials[number].params))
            made = run(start("mlp1024", seed), again, task("strict", seed), folder or common_folder())
            found.append(made.assign(group="corners", recipe=name, seed=seed, number=range(len(made))))
    return pd.concat(found, ignore_index=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--folder", help="default: the cache of the book")
    search(**vars(parser.parse_args()))
