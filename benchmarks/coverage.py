"""How often the 95 % intervals hold the true score, on drawn cohorts whose true score is known.

Comes in: the number of cohorts of a cell. Goes out: a table of coverage and median width of AUROC,
sensitivity, accuracy and balanced accuracy. Scores of a class are normal, of distance by the AUROC; a
patient's slides share half of their variance.
"""

import argparse

import numpy as np
from scipy import stats

from benchmarks import results
from wsi_mil.metrics import limits

SCORES = ("auroc", "recall", "accuracy", "balanced_accuracy")


def cell(
    patients: int, prevalence: float, area: float, slides: int, cohorts: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return (coverage, median width) by score over cohorts; class sizes are the expected ones."""
    rng = np.random.default_rng([seed, patients, slides, int(100 * prevalence), int(100 * area)])
    distance = 2**0.5 * stats.norm.ppf(area)
    codes_P = (np.arange(patients) < max(1, round(prevalence * patients))).astype(np.int64)
    codes_N, patients_N = (
        np.repeat(codes_P, slides),
        [f"p{i:04}" for i in range(patients) for _ in range(slides)],
    )
    right = float(stats.norm.cdf(distance / 2))
    truth = {"auroc": area, "recall": right, "accuracy": right, "balanced_accuracy": right}
    held: dict[str, list[bool]] = {name: [] for name in SCORES}
    width: dict[str, list[float]] = {name: [] for name in SCORES}
    for _ in range(cohorts):
        noise_N = rng.normal(size=len(codes_N))
        if slides > 1:
            noise_N = (noise_N + np.repeat(rng.normal(size=patients), slides)) / 2**0.5
        positive_N = stats.norm.cdf(distance * (codes_N - 0.5) + noise_N)
        found = limits.limits_of(
            "classification", codes_N, np.stack([1 - positive_N, positive_N], axis=1), patients_N
        )
        for name in SCORES:
            low, high, _method = found[name]
            held[name].append(low <= truth[name] <= high)
            width[name].append(high - low)
    return {name: (float(np.mean(held[name])), float(np.median(width[name]))) for name in SCORES}


def main() -> None:
    """Print the table, and append it to RESULTS.md where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true")
    args = parser.parse_args()
    error = 100 * (0.95 * 0.05 / args.cohorts) ** 0.5
    lines = [
        f"`python -m benchmarks.coverage --cohorts {args.cohorts} --seed {args.seed}`: "
        f"coverage in % (median width); "
        f"the simulation's standard error at 95 % is {error:.1f}. Class sizes are fixed.",
        "",
        "| patients | slides each | prevalence | true AUROC | " + " | ".join(SCORES) + " |",
        "|" + "---|" * (4 + len(SCORES)),
    ]
    outside = dict.fromkeys(SCORES, 0)
    cells = 0
    for patients in (20, 40, 100, 400):
        for slides in (1, 3):
            for prevalence in (0.1, 0.3, 0.5):
                for area in (0.6, 0.8, 0.95, 0.99):
                    found = cell(patients, prevalence, area, slides, args.cohorts, args.seed)
                    cells += 1
                    shown = []
                    for name, (covered, wide) in found.items():
                        outside[name] += not 0.93 <= covered <= 0.97
                        shown.append(f"{100 * covered:.1f} ({wide:.2f})")
                    row = (patients, slides, prevalence, area, *shown)
                    lines.append("| " + " | ".join(map(str, row)) + " |")
    missed = ", ".join(f"{name} {count}" for name, count in outside.items())
    lines += ["", f"Cells outside 93 to 97 %, of {cells}: {missed}."]
    results.publish("Coverage of the intervals", lines, append=args.append)


if __name__ == "__main__":
    main()
