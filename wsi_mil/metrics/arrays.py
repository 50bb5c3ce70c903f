"""Names for the arrays and tasks that the metrics work on."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Targets = NDArray[Any]
"""Of classification and ordinal (N,) codes; multilabel (N, L) 0/1; regression (N,); survival (N, 2) time, event."""

Task = Literal["classification", "multilabel", "ordinal", "regression", "survival"]
