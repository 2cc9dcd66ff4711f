"""Unit tests of the idea: does a method learn the cells that make a bag positive, or a shortcut?

After Raff & Holt 2023, *Reproducibility in Multiple Instance Learning: A Case For Algorithmic Unit Tests*
(arXiv 2310.17867), Algorithms 1-3. In training bags a shortcut tells the class as well as the right cells do;
in test bags it tells the opposite. A method that took it has a high AUROC in training and one below 0.5 in
the test. The converse does not hold: a method that passes all three may still break an assumption.

The laws are taken from public code that names these algorithms, not from the paper's own pages: torchmil's
data sets `SCStandardMIL`, `MCStandardMIL`, `FalseFrequencyMIL`, and for Algorithm 2 `MCStandard_MIO`. Ranges
of counts are read with both ends included, as the second does; torchmil leaves out the last number.

Axes: S bags, N cells of a bag, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32
from sklearn.metrics import roc_auc_score

from hemomil.mil.model import AnomalyMIL
from hemomil.mil.settings import MILSettings
from hemomil.streams import stream
from hemomil.types import Bag

Verdict = Literal["respects", "violates", "not learned"]
Score = Callable[[Sequence[Bag]], Float[np.ndarray, "S"]]
"""How positive each bag looks; larger is more so."""
Recipe = Callable[[np.random.Generator, bool, bool], list[str]]
"""The cell labels of a bag, from randomness, whether it is positive, and whether it is for training."""

CONTROL, POSITIVE = "control", "positive"
CHANCE = 0.5
LEARNED = 0.7
"""Our choice: below this AUROC on its own training bags a method learned too little to be judged."""

CELLS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "background": (0.0, 1.0),
        "poison": (-10.0, 0.1),
        "wide": (0.0, 3.0),
        "shifted": (1.0, 1.0),
        "a": (2.0, 0.1),
        "b": (3.0, 0.1),
    }
)
"""Mean and SD of every feature, by cell label. Features are independent and Gaussian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many bags, half of them positive, and how many features."""

    train: int = 400
    test: int = 200
    features: int = 16


SIZES = Sizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTest:
    """Bags to learn from, bags that turn the shortcut round, and what each cell truly is."""

    name: str
    train: tuple[Bag, ...]
    test: tuple[Bag, ...]
    cell_labels: Mapping[str, str]
    """Cell id to its label, a key of `CELLS`. Never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How well positive bags were told from control bags, in training and in the test."""

    train_auroc: float
    test_auroc: float

    @property
    def verdict(self) -> Verdict:
        """`violates`: learned, and worse than chance where the shortcut is turned round."""
        if self.train_auroc < LEARNED:
            return "not learned"
        return "violates" if self.test_auroc < CHANCE else "respects"


def single_concept(seed: int, sizes: Sizes = SIZES) -> UnitTest:
    """Algorithm 1. Positive: one to four cells of the concept, each `wide` or `shifted`; control: none.

    Ten background cells in every bag. Poison, the shortcut, is one cell in each control bag of training and
    in each positive bag of the test: who takes its absence for disease is wrong there.
    """
    return _make("single-concept", _single_concept, seed, sizes)


def multi_concept(seed: int, sizes: Sizes = SIZES) -> UnitTest:
    """Algorithm 2. Positive: one to four cells of `a`, and one to four of `b`; control: one cell of either.

    One to ten background cells. Poison as in `single_concept`.
    """
    return _make("multi-concept", _multi_concept, seed, sizes)


def threshold(seed: int, sizes: Sizes = SIZES, *, needed: int = 1) -> UnitTest:
    """Algorithm 3 (false frequency). Positive: at least `needed` cells of `a` and as many of `b`.

    Positive bags have `needed` to twice as many of each. Control bags have fewer than `needed` of one; of the
    other they have one to 2 `needed` in training, but 35 to 45 in the test: who counts both together is wrong
    there. Algorithm 3 has `needed` = 1. One to ten background cells, no poison.
    """
    return _make("threshold", partial(_threshold, needed), seed, sizes)


UNIT_TESTS: Mapping[str, Callable[[int, Sizes], UnitTest]] = MappingProxyType(
    {"single-concept": single_concept, "multi-concept": multi_concept, "threshold": threshold}
)


def _single_concept(rng: np.random.Generator, positive: bool, training: bool) -> list[str]:
    concept = rng.choice(["wide", "shifted"], _between(rng, 1, 4)).tolist() if positive else []
    return ["background"] * 10 + concept + _poison(positive, training)


def _multi_concept(rng: np.random.Generator, positive: bool, training: bool) -> list[str]:
    either = ["a"] * _between(rng, 1, 4) + ["b"] * _between(rng, 1, 4) if positive else [_one_of_two(rng)[0]]
    return ["background"] * _between(rng, 1, 10) + either + _poison(positive, training)


def _threshold(needed: int, rng: np.random.Generator, positive: bool, training: bool) -> list[str]:
    many, few = _one_of_two(rng)
    if positive:
        counts = _between(rng, needed, 2 * needed), _between(rng, needed, 2 * needed)
    else:
        often = _between(rng, 1, 2 * needed) if training else _between(rng, 35, 45)
        counts = often, _between(rng, 0, needed - 1)
    return ["background"] * _between(rng, 1, 10) + [many] * counts[0] + [few] * counts[1]


def _poison(positive: bool, training: bool) -> list[str]:
    return ["poison"] if positive != training else []


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform, both ends included."""
    return int(rng.integers(low, high, endpoint=True))


def _one_of_two(rng: np.random.Generator) -> tuple[str, str]:
    return ("a", "b") if rng.random() < 0.5 else ("b", "a")


def _make(name: str, recipe: Recipe, seed: int, sizes: Sizes) -> UnitTest:
    train, train_labels = _bags(name, "train", recipe, seed, sizes.train, sizes.features)
    test, test_labels = _bags(name, "test", recipe, seed, sizes.test, sizes.features)
    labels = MappingProxyType({**train_labels, **test_labels})
    return UnitTest(name=name, train=train, test=test, cell_labels=labels)


def _bags(
    name: str, split: Literal["train", "test"], recipe: Recipe, seed: int, n: int, features: int
) -> tuple[tuple[Bag, ...], dict[str, str]]:
    """Control and positive bags in turn, each of a patient of its own, and the label of each cell."""
    rng = stream(seed, "assumptions", name, split)
    bags: list[Bag] = []
    labels: dict[str, str] = {}
    for i in range(n):
        positive = i % 2 == 1
        kinds = rng.permutation(recipe(rng, positive, split == "train")).tolist()
        sample = f"{split}-{i:05d}"
        ids = tuple(f"{sample}/{row:04d}" for row in range(len(kinds)))
        cells = _cells(rng, kinds, features)
        label = POSITIVE if positive else CONTROL
        bags.append(Bag(sample=sample, patient=f"p-{sample}", label=label, features=cells, cell_ids=ids))
        labels.update(zip(ids, kinds, strict=True))
    return tuple(bags), labels


def _cells(rng: np.random.Generator, kinds: Sequence[str], features: int) -> Float32[np.ndarray, "N F"]:
    mean, sd = np.array([CELLS[kind] for kind in kinds]).T
    noise = rng.normal(size=(len(kinds), features))
    cells: np.ndarray = (mean[:, None] + sd[:, None] * noise).astype(np.float32)
    return cells


def outcome(unit: UnitTest, score: Score) -> Outcome:
    """AUROC of `score` on the bags of training and on those of the test."""
    return Outcome(train_auroc=_auroc(unit.train, score), test_auroc=_auroc(unit.test, score))


def _auroc(bags: Sequence[Bag], score: Score) -> float:
    return float(roc_auc_score([bag.label == POSITIVE for bag in bags], score(bags)))


def try_method(unit: UnitTest, method: str, settings: MILSettings | None = None, *, seed: int = 0) -> Outcome:
    """Fit `method` as a study does, control bags being the healthy ones, and see which way it went.

    Raises SettingsError for an unknown method.
    """
    model = AnomalyMIL(method, settings, control=CONTROL, seed=seed)
    model.fit(unit.train, [bag.label for bag in unit.train], patients=[bag.patient for bag in unit.train])
    column = list(model.classes_).index(POSITIVE)
    return outcome(unit, lambda bags: model.predict_proba(bags)[:, column])
