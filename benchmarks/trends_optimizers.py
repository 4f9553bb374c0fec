"""The trainings of chapter 5's first trend. With ``--store`` they become what the chapter shows."""

import argparse
import datetime

from dlopt_helpers.chapters.trends_optimizers_runs import STORED, trainings

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name}")
    arguments = parser.parse_args()
    table = trainings()
    last = table.columns[-2]
    print(table.groupby(["rule", "schedule", "lr"], sort=False)[[last, "fresh"]].mean().round(3).to_string())
    if arguments.store:
        table.assign(date=datetime.date.today().isoformat()).to_csv(STORED, index=False)
