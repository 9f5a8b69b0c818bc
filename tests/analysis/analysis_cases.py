"""Sizes and tolerances that tests of the analysis share."""

import numpy as np
from sklearn.cluster import KMeans

from jaxprune.analysis.bootstrap import Bootstrap

CLIPS, LEVELS = 9, 5
FEW = Bootstrap(resamples=50)
EXACT = 1e-12


def ranks_by_sklearn(values: np.ndarray) -> np.ndarray:
    found = KMeans(LEVELS, random_state=123).fit(values.astype(np.float64).reshape(-1, 1))
    place = np.argsort(np.argsort(found.cluster_centers_[:, 0]))
    return place[found.labels_].reshape(values.shape)
