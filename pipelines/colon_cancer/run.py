"""The paper's table of colon cancer: six methods, end to end on nuclei, cross-validated.

python -m pipelines.colon_cancer.run --data FOLDER --methods attention gated-attention --repetitions 1
"""

from collections.abc import Sequence

from pipelines.colon_cancer.data import SIDE, load
from pipelines.paper import crossval
from pipelines.paper.recipe import histology

# Ilse, Tomczak & Welling 2018, mean and standard error of 5 repetitions.
PAPER = {
    "instance-max": {
        "accuracy": (0.842, 0.021), "precision": (0.866, 0.017), "recall": (0.816, 0.031),
        "F-score": (0.839, 0.023), "AUC": (0.914, 0.010),
    },
    "instance-mean": {
        "accuracy": (0.772, 0.012), "precision": (0.821, 0.011), "recall": (0.710, 0.031),
        "F-score": (0.759, 0.017), "AUC": (0.866, 0.008),
    },
    "max": {
        "accuracy": (0.824, 0.015), "precision": (0.884, 0.014), "recall": (0.753, 0.020),
        "F-score": (0.813, 0.017), "AUC": (0.918, 0.010),
    },
    "mean": {
        "accuracy": (0.860, 0.014), "precision": (0.911, 0.011), "recall": (0.804, 0.027),
        "F-score": (0.853, 0.016), "AUC": (0.940, 0.010),
    },
    "attention": {
        "accuracy": (0.904, 0.011), "precision": (0.953, 0.014), "recall": (0.855, 0.017),
        "F-score": (0.901, 0.011), "AUC": (0.968, 0.009),
    },
    "gated-attention": {
        "accuracy": (0.898, 0.020), "precision": (0.944, 0.016), "recall": (0.851, 0.035),
        "F-score": (0.893, 0.022), "AUC": (0.968, 0.010),
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    return crossval.command(
        __doc__.splitlines()[0],
        "runs/colon_cancer",
        recipe=histology(SIDE),
        load=load,
        paper=PAPER,
        arguments_=arguments,
    )


if __name__ == "__main__":
    raise SystemExit(main())
