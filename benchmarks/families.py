"""Do the tests of `equipoise compare` keep their promise? Families in which every method is the same, row by row.

python -m benchmarks.families --families 2000 [--runs runs.parquet] [--methods 24]

With --runs, shares of right rows and correlations are those of the comparison's final runs at equal steps; without, stated ones.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from equipoise.pipelines.comparing.families import Pattern, patterns_of, rates

#: Without a comparison: small sets of test rows, methods that agree on most of them.
STATED = {
    "full": {
        "easy": Pattern((0.97,), 270, row=0.75, row_seed=0.1, seed=0.002, training=0.004),
        "middle": Pattern((0.9,), 300, row=0.8, row_seed=0.08, seed=0.002, training=0.004),
        "hard": Pattern((0.83,), 200, row=0.7, row_seed=0.12, seed=0.01, training=0.01),
        "folds": Pattern((0.82,), 250, row=0.0, row_seed=0.85, seed=0.03, training=0.01),
    },
    "missing Avg": {
        "easy": Pattern((0.8, 0.65), 270, row=0.6, row_seed=0.15, seed=0.003, training=0.01),
        "middle": Pattern((0.85, 0.8, 0.82), 300, row=0.7, row_seed=0.1, seed=0.003, training=0.01),
        "hard": Pattern((0.5, 0.7), 200, row=0.6, row_seed=0.12, seed=0.01, training=0.02),
        "folds": Pattern((0.6, 0.5), 250, row=0.0, row_seed=0.7, seed=0.02, training=0.03),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=2000)
    parser.add_argument("--runs", help="runs.parquet of a comparison")
    parser.add_argument(
        "--methods", type=int, help="names of the one method (default: as many as the comparison has, or 24)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs = pd.read_parquet(given.runs) if given.runs else None
    methods = given.methods or (runs["method"].nunique() if runs is not None else 24)
    for figure in ("full", "missing Avg"):
        patterns = STATED[figure] if runs is None else patterns_of(runs, figure)
        print(f"\n{figure}: {'stated' if runs is None else 'from ' + given.runs}")
        print("data set    rows  shares right          row  row x seed   seed  training")
        for name, p in patterns.items():
            shares = ", ".join(f"{s:.3f}" for s in p.shares)
            print(
                f"{name:10} {p.rows:5d}  {shares:20} {p.row:.3f}       {p.row_seed:.3f}  {p.seed:.4f}    {p.training:.4f}"
            )
        for seeds in (5, 10):
            began = time.perf_counter()
            rng = np.random.default_rng([given.seed, seeds, len(figure)])
            found = rates(list(patterns.values()), methods, seeds, given.families, rng)
            print(
                f"{seeds} seeds, {found.tests} tests a family, {found.families} families: any difference called in "
                f"{found.error:.4f} of them (bound {found.bound:.4f} = .05 + 2 x {found.standard_error:.4f}); "
                f"planted differences of the promised size found: {found.planted:.3f} ({time.perf_counter() - began:.0f} s)"
            )


if __name__ == "__main__":
    main()
