"""Isolation forest (Liu et al. 2008): a strange cell is soon alone when features are cut at random.

Axes: M healthy cells, N cells to be scored, F features, T trees, V nodes of the largest tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from sklearn.ensemble import IsolationForest

from hemomil.novelty.neighbours import MEMORY, balanced_rows

AT_ONCE = 200_000
"""Cells times trees that are followed at a time; bounds memory."""
LEAF = -1
"""What scikit-learn writes for the children of a leaf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """The trees of scikit-learn's IsolationForest as arrays; tree t is row t, filled up with leaves."""

    left: Int64[np.ndarray, "T V"]
    right: Int64[np.ndarray, "T V"]
    feature: Int64[np.ndarray, "T V"]
    threshold: Float64[np.ndarray, "T V"]
    depth: Float64[np.ndarray, "T V"]
    """Cuts on the way to a node, plus the mean number that would still part the cells it holds."""
    usual: Float64[np.ndarray, ""]
    """Mean number of cuts that part as many cells as a tree was given."""

    @classmethod
    def fit(cls, cells: Float[np.ndarray, "M F"], donors: Sequence[str], *, seed: int) -> "Forest":
        """Fit 100 trees to as many cells of every donor."""
        rows = balanced_rows(donors, MEMORY, seed=seed)
        forest = IsolationForest(random_state=seed % 2**32).fit(cells[rows].astype(np.float32))
        trees = [tree.tree_ for tree in forest.estimators_]
        held = _filled([tree.n_node_samples for tree in trees], 1.0).astype(np.int64)
        left = _filled([tree.children_left for tree in trees], float(LEAF)).astype(np.int64)
        right = _filled([tree.children_right for tree in trees], float(LEAF)).astype(np.int64)
        return cls(
            left=left,
            right=right,
            feature=np.maximum(_filled([tree.feature for tree in trees], 0.0), 0).astype(np.int64),
            threshold=_filled([tree.threshold for tree in trees], 0.0),
            depth=_depths(left, right) + usual_depth(held),
            usual=usual_depth(np.array(forest.max_samples_)),
        )

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Minus scikit-learn's `score_samples`, 0 to 1; larger is stranger."""
        rows = max(1, AT_ONCE // len(self.left))
        parts = [cells[start : start + rows] for start in range(0, len(cells), rows)]
        depth = [self._depth(np.asarray(part, dtype=np.float32)) for part in parts]
        mean = np.concatenate([np.empty(0), *depth]) / len(self.left)
        # a single healthy cell cannot be parted: then no cell is stranger than another, as in scikit-learn
        scores: np.ndarray = 2 ** -(mean / self.usual if self.usual > 0 else np.ones_like(mean))
        return scores

    def _depth(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """How deep each cell lies, summed over the trees: down all of them at once."""
        tree, row = np.arange(len(self.left))[:, None], np.arange(len(cells))
        node = np.zeros((len(self.left), len(cells)), dtype=np.int64)
        while (inner := self.left[tree, node] != LEAF).any():
            goes_left = cells[row, self.feature[tree, node]] <= self.threshold[tree, node]
            below = np.where(goes_left, self.left[tree, node], self.right[tree, node])
            node = np.where(inner, below, node)
        total: np.ndarray = self.depth[tree, node].sum(axis=0)
        return total


def usual_depth(n: Int64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Mean number of cuts that part n cells: 2 (H(n-1) - (n-1)/n), as scikit-learn approximates it."""
    many = np.maximum(n, 3).astype(np.float64)
    mean = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    depths: np.ndarray = np.where(n > 2, mean, np.where(n == 2, 1.0, 0.0))
    return depths


def _filled(trees: Sequence[np.ndarray], blank: float) -> np.ndarray:
    """Nodes of all trees as one array, short trees filled up."""
    table = np.full((len(trees), max(map(len, trees))), blank, dtype=np.float64)
    for row, tree in zip(table, trees, strict=True):
        row[: len(tree)] = tree
    return table


def _depths(left: Int64[np.ndarray, "T V"], right: Int64[np.ndarray, "T V"]) -> Float64[np.ndarray, "T V"]:
    """Cuts on the way to each node; scikit-learn numbers a node before its children."""
    depths = np.zeros(left.shape)
    trees = np.arange(len(left))
    for node in range(left.shape[1]):
        for child in (left[:, node], right[:, node]):
            inner = child != LEAF
            depths[trees[inner], child[inner]] = depths[inner, node] + 1
    return depths
