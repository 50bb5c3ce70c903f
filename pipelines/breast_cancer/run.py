"""The paper's table of breast cancer: six methods, end to end on patches, cross-validated.

python -m pipelines.breast_cancer.run --data FOLDER --repetitions 1
"""

from collections.abc import Sequence

from pipelines.breast_cancer.data import SIDE, load
from pipelines.paper import crossval
from pipelines.paper.recipe import histology

# Ilse, Tomczak & Welling 2018, mean and standard error of 5 repetitions (of accuracy and AUC).
PAPER = {
    "instance-max": {
        "accuracy": (0.614, 0.020), "precision": 0.585, "recall": 0.477, "F-score": 0.506,
        "AUC": (0.612, 0.026),
    },
    "instance-mean": {
        "accuracy": (0.672, 0.026), "precision": 0.672, "recall": 0.515, "F-score": 0.577,
        "AUC": (0.719, 0.019),
    },
    "max": {
        "accuracy": (0.607, 0.015), "precision": 0.558, "recall": 0.546, "F-score": 0.543,
        "AUC": (0.650, 0.013),
    },
    "mean": {
        "accuracy": (0.741, 0.023), "precision": 0.741, "recall": 0.654, "F-score": 0.689,
        "AUC": (0.796, 0.012),
    },
    "attention": {
        "accuracy": (0.745, 0.018), "precision": 0.718, "recall": 0.715, "F-score": 0.712,
        "AUC": (0.775, 0.016),
    },
    "gated-attention": {
        "accuracy": (0.755, 0.016), "precision": 0.728, "recall": 0.731, "F-score": 0.725,
        "AUC": (0.799, 0.020),
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    return crossval.command(
        __doc__.splitlines()[0],
        "runs/breast_cancer",
        recipe=histology(SIDE),
        load=load,
        paper=PAPER,
        arguments_=arguments,
    )


if __name__ == "__main__":
    raise SystemExit(main())
