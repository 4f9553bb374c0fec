"""Runs of several seeds, summed up."""

import pandas as pd

from dlopt_helpers.lab.summary import at_best_rate, final_accuracy, over_seeds


def frame(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


def test_the_rate_is_the_best_on_the_validation_examples_for_all_seeds_at_once():
    runs = frame(
        "setting rate seed validation accuracy",
        ("a", 0.1, 0, 0.9, 0.1),  # the best of seed 0, not of the mean
        ("a", 0.1, 1, 0.1, 0.9),
        ("a", 0.2, 0, 0.6, 0.2),  # the best mean of the validation accuracies
        ("a", 0.2, 1, 0.6, 0.3),
        ("a", 0.3, 0, 0.5, 0.8),  # the best mean of the test accuracies
        ("a", 0.3, 1, 0.5, 0.8),
        ("b", 0.1, 0, 0.4, 0.5),  # another setting has another rate
        ("b", 0.1, 1, 0.4, 0.6),
        ("b", 0.2, 0, 0.3, 0.7),
        ("b", 0.2, 1, 0.4, 0.7),
    )
    before = runs.copy()
    best = at_best_rate(runs.sample(frac=1, random_state=0), ["setting"])
    found = best.sort_values(["setting", "seed"]).drop(columns="validation").to_numpy().tolist()
    assert found == [["a", 0.2, 0, 0.2], ["a", 0.2, 1, 0.3], ["b", 0.1, 0, 0.5], ["b", 0.1, 1, 0.6]]
    assert list(best.index) == [0, 1, 2, 3] and runs.equals(before)


def test_of_rates_that_tie_the_last_is_taken():
    rates = ((0.1, 0.5), (0.2, 0.4), (0.3, 0.5))
    rows = [(s, rate, seed, best, 0.0) for s in range(40) for rate, best in rates for seed in (0, 1)]
    best = at_best_rate(frame("setting rate seed validation accuracy", *rows), ["setting"])
    assert len(best) == 80 and (best.groupby("setting").rate.nunique() == 1).all()
    assert set(best.rate) == {0.3}


RUNS = frame(
    "lr seed step loss accuracy diverged",
    (0.1, 0, 0, 2.0, 0.1, False),
    (0.1, 0, 9, 1.0, 0.7, False),
    (0.1, 1, 0, 4.0, 0.2, False),
    (0.1, 1, 9, 2.0, 0.4, False),
    (0.9, 0, 0, 3.0, 0.3, True),  # its last row before it diverged
)


def test_over_seeds_are_the_mean_the_lowest_and_the_highest():
    rows = over_seeds(RUNS, ["lr", "step"])
    assert list(rows.columns) == ["lr", "step", "loss", "accuracy", "low", "high"]
    found = rows.round(9).to_numpy().tolist()
    assert found == [[0.1, 0, 3, 0.15, 0.1, 0.2], [0.1, 9, 1.5, 0.55, 0.4, 0.7], [0.9, 0, 3, 0.3, 0.3, 0.3]]


def test_a_run_that_diverged_ends_with_the_accuracy_of_chance():
    last = final_accuracy(RUNS, ["lr"])
    assert last[["lr", "seed", "step", "accuracy"]].to_numpy().tolist() == [
        [0.1, 0, 9, 0.7],
        [0.1, 1, 9, 0.4],
        [0.9, 0, 0, 0.1],
    ]
