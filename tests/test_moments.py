"""Mean and deviation of features over patches, against double precision at once."""

import numpy as np
import torch

from wsi_mil.train import Patches


def test_moments_are_those_in_double_precision_and_each_bag_weighs_the_same():
    rng = np.random.default_rng(0)
    lengths = (1, 3, 256, 257, 2000)
    scale = np.geomspace(1e-3, 100, 24)
    bags = [
        (rng.normal(size=(n, 24)) * scale + 50 * scale * i).astype(np.float16) for i, n in enumerate(lengths)
    ]
    some = np.array([0, 2, 3, 4])
    found = Patches.of(bags).moments(some)
    mean_D = np.mean([bags[b].astype(np.float64).mean(axis=0) for b in some], axis=0)
    squares = [((bags[b].astype(np.float64) - mean_D) ** 2).mean(axis=0) for b in some]
    np.testing.assert_allclose(found.mean_D, mean_D, rtol=1e-6)
    np.testing.assert_allclose(found.std_D, np.sqrt(np.mean(squares, axis=0)), rtol=1e-5)


def test_a_constant_feature_has_no_deviation_however_large_it_is():
    bags = [torch.full((700, 2), 3001.0).half(), torch.full((10, 2), 3001.0).half()]
    found = Patches.of(bags).moments(np.arange(2))
    assert found.std_D.tolist() == [0, 0]
    np.testing.assert_allclose(found.mean_D, float(bags[0][0, 0]))
