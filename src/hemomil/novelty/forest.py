"""Isolation forest (Liu et al. 2008): a strange cell is soon alone when features are cut at random.

Axes: M healthy cells, N cells to be scored, F features, T trees, V nodes of the largest tree, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from sklearn import config_context
from sklearn.tree import ExtraTreeRegressor
from sklearn.tree._tree import Tree
from sklearn.utils.random import sample_without_replacement

from hemomil.novelty.neighbours import MEMORY, balanced_rows

TREES = 100
CELLS = 256
"""Healthy cells that a tree is made of, if there are so many."""
SEEDS = np.iinfo(np.int32).max
"""Below this scikit-learn draws the seed of each tree."""
AT_ONCE = 25_000
"""Cells times trees that are followed at a time; bounds memory, stays in the cache."""
LEAF = -1
"""What scikit-learn writes for the children of a leaf."""


@dataclass(frozen=True, kw_only=True)
class Forest:
    """The trees of scikit-learn's IsolationForest, made complete: the children of i are 2 i + 1 and 2 i + 2.

    Below a leaf every cell goes left, to the first leaf of the last level that is under it.
    """

    feature: Int64[np.ndarray, "T I"]
    """Which feature an inner node asks about."""
    threshold: Float64[np.ndarray, "T I"]
    """A cell whose feature is above goes right."""
    depth: Float64[np.ndarray, "T J"]
    """Of each leaf of the last level: cuts on the way to the real leaf, plus the mean number that would still
    part the cells it holds."""
    usual: Float64[np.ndarray, ""]
    """Mean number of cuts that part as many cells as a tree was given."""

    @classmethod
    def fit(cls, cells: Float[np.ndarray, "M F"], donors: Sequence[str], *, seed: int) -> "Forest":
        """Fit `TREES` to as many cells of every donor."""
        known = cells[balanced_rows(donors, MEMORY, seed=seed)].astype(np.float32)
        trees = isolation_trees(known, seed % 2**32)
        place, level = _places(
            _filled([tree.children_left for tree in trees], LEAF),
            _filled([tree.children_right for tree in trees], LEAF),
        )
        levels = int(level.max())
        feature = np.zeros((len(trees), 2**levels - 1), dtype=np.int64)
        threshold, depth = np.full(feature.shape, np.inf), np.zeros((len(trees), 2**levels))
        for row, tree in enumerate(trees):
            at, of_level = place[row, : tree.node_count], level[row, : tree.node_count]
            inner = tree.children_left != LEAF
            feature[row, at[inner]], threshold[row, at[inner]] = tree.feature[inner], tree.threshold[inner]
            leaf, of_leaf = at[~inner], of_level[~inner]
            first = (leaf + 1 - 2**of_leaf) * 2 ** (levels - of_leaf)
            depth[row, first] = of_leaf + usual_depth(tree.n_node_samples[~inner].astype(np.int64))
        return cls(
            feature=feature,
            threshold=threshold,
            depth=depth,
            usual=usual_depth(np.array(min(CELLS, len(known)))),
        )

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Minus scikit-learn's `score_samples`, 0 to 1; larger is stranger."""
        rows = max(1, AT_ONCE // len(self.feature))
        parts = [cells[start : start + rows] for start in range(0, len(cells), rows)]
        depth = [self._depth(np.ascontiguousarray(part, dtype=np.float32)) for part in parts]
        mean = np.concatenate([np.empty(0), *depth]) / len(self.feature)
        # a single healthy cell cannot be parted: then no cell is stranger than another, as in scikit-learn
        scores: np.ndarray = 2 ** -(mean / self.usual if self.usual > 0 else np.ones_like(mean))
        return scores

    @cached_property
    def _levels(self) -> list[tuple[Int64[np.ndarray, "_"], Float32[np.ndarray, "_"]]]:
        """Features and thresholds of each level, from left to right through all trees.

        Cells are single: above a threshold is above the next single number that is not greater.
        """
        rounded = self.threshold.astype(np.float32)
        below = np.where(rounded > self.threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
        starts = 2 ** np.arange(self.feature.shape[1].bit_length()) - 1  # one bit a level
        rows = [slice(start, 2 * start + 1) for start in starts]
        return [(self.feature[:, row].ravel(), below[:, row].ravel()) for row in rows]

    def _depth(self, cells: Float32[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """How deep each cell lies, summed over the trees: down all of them at once, in arrays used again.

        Nodes of a level are counted through all trees. Without mode="clip", `take` would check every index.
        """
        row = np.arange(len(cells)) * cells.shape[1]
        node = np.repeat(np.arange(len(self.feature))[:, None], len(cells), axis=1)
        asked, right = np.empty_like(node), np.empty(node.shape, dtype=bool)
        value, threshold = (np.empty(node.shape, dtype=np.float32) for _ in range(2))
        for feature, thresholds in self._levels:
            feature.take(node, out=asked, mode="clip")
            asked += row
            cells.take(asked, out=value, mode="clip")
            thresholds.take(node, out=threshold, mode="clip")
            np.greater(value, threshold, out=right)
            node += node  # below the node i of a level are 2 i and 2 i + 1 of the next
            node += right
        total: np.ndarray = self.depth.take(node, mode="clip").sum(axis=0)
        return total


def isolation_trees(cells: Float32[np.ndarray, "M F"], seed: int) -> list[Tree]:
    """The trees of `IsolationForest(TREES, random_state=seed)`, its draws repeated one by one.

    scikit-learn's own bagging spends three quarters of its time on copying and checking estimators and on new
    random generators.
    """
    n, features = cells.shape
    size = min(CELLS, n)
    levels = int(np.ceil(np.log2(max(size, 2))))
    drawn, grown = np.random.RandomState(seed), np.random.RandomState(0)  # to seed one again is much faster
    nonsense: np.ndarray = drawn.uniform(size=(n,))
    drawn.seed(seed)
    trees = []
    with config_context(skip_parameter_validation=True):
        for own in drawn.randint(SEEDS, size=TREES).tolist():
            drawn.seed(own)
            grown.seed(drawn.randint(SEEDS))
            drawn.seed(own)
            sample_without_replacement(features, features, random_state=drawn)  # a tree's features: all
            rows = np.sort(sample_without_replacement(n, size, random_state=drawn))
            tree = ExtraTreeRegressor(max_features=1, max_depth=levels, random_state=grown)
            trees.append(tree.fit(cells[rows], nonsense[rows], check_input=False).tree_)
    return trees


def usual_depth(n: Int64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Mean number of cuts that part n cells: 2 (H(n-1) - (n-1)/n), as scikit-learn approximates it."""
    many = np.maximum(n, 3).astype(np.float64)
    mean = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    depths: np.ndarray = np.where(n > 2, mean, np.where(n == 2, 1.0, 0.0))
    return depths


def _filled(trees: Sequence[np.ndarray], blank: int) -> Int64[np.ndarray, "T V"]:
    """Nodes of all trees as one array, short trees filled up."""
    table = np.full((len(trees), max(map(len, trees))), blank, dtype=np.int64)
    for row, tree in zip(table, trees, strict=True):
        row[: len(tree)] = tree
    return table


def _places(
    left: Int64[np.ndarray, "T V"], right: Int64[np.ndarray, "T V"]
) -> tuple[Int64[np.ndarray, "T V"], Int64[np.ndarray, "T V"]]:
    """Number in the complete tree, and level, of each node; scikit-learn numbers parents before children."""
    place, level = np.zeros(left.shape, dtype=np.int64), np.zeros(left.shape, dtype=np.int64)
    trees = np.arange(len(left))
    for node in range(left.shape[1]):
        for side, child in ((1, left[:, node]), (2, right[:, node])):
            inner = child != LEAF
            place[trees[inner], child[inner]] = 2 * place[inner, node] + side
            level[trees[inner], child[inner]] = level[inner, node] + 1
    return place, level
