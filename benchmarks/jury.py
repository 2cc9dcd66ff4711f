"""What it costs to say whether a cell is strange: error rates from 100,000 control cells, and a cell judged.

Run `OMP_NUM_THREADS=1 python benchmarks/jury.py [--json FILE]` (2 minutes). Cells are random vectors of 80
numbers; `default` has learned from a few of them. Nothing is compared: CPU time, the median of five.
"""

import numpy as np

from hemomil.commands.fitting import fit, jury_of_site, predict
from hemomil.commands.settings import Settings
from hemomil.mil import MILSettings
from hemomil.types import Bag
from timing import Row, alternate, main, spread, told

FEATURES = 80
CONTROLS, CELLS = 40, 2_500
"""Control donors, and cells of each: 100,000 in all."""
SAMPLES = (30, 500, 5_000)
"""Cells of a sample: as in nih_malaria, twice as many as in the paper, and of a scanner."""
JUDGED = 15_000
"""Cells judged in a round, in samples of each size."""


def bag_of(n, seed, label="control"):
    features = np.random.default_rng(seed).standard_normal((n, FEATURES), dtype=np.float32)
    ids = tuple(map(str, range(n)))
    return Bag(sample=f"s{seed}", patient=f"p{seed}", label=label, features=features, cell_ids=ids)


def trained():
    """A model and its jury, after an epoch on small bags."""
    bags = [bag_of(50, seed, ("control", "target")[seed % 2]) for seed in range(24)]
    return fit(bags, "default", Settings(mil=MILSettings.preset("default", epochs=1)), seed=0)


def calibration():
    """Reference, scorers, threshold and error rates made anew of control cells, as `recalibrate` does it."""
    model, jury = trained()
    controls = [bag_of(CELLS, 100 + seed) for seed in range(CONTROLS)]

    def again():
        site = model.recalibrated(controls)
        jury_of_site(site, jury, controls, seed=0)

    found = spread([seconds["again"] for seconds in alternate({"again": again})])
    name = f"calibration by {CONTROLS * CELLS:,} control cells of {CONTROLS} donors: networks, scorers, rates"
    yield told(Row(name=name, unit="s", **found, at_most=120, note="as `hemomil recalibrate` does it"))


def judging():
    """Cells judged: by a scorer, by all six, and with the diagnosis, for which eleven networks are asked."""
    model, jury = trained()
    for n in SAMPLES:
        bags = [bag_of(n, 1000 + seed) for seed in range(JUDGED // n)]
        embedded = [model.embedded(bag) for bag in bags]
        said = model.predict_cells(bags)

        def scorer(embedded=embedded):
            for places in embedded:
                jury.chief.score_samples(places[0])

        def every(embedded=embedded, said=said):
            for places, of in zip(embedded, said, strict=True):
                flags = jury.flags(of.anomaly, places)
                jury.sample_p(flags)
                jury.abnormal_low(flags)

        def whole(bags=bags):
            predict(model, jury, bags)

        ways = {"`combined`, a scorer": scorer, "the jury": every, "diagnosis and jury": whole}
        rounds = alternate(ways)
        for name in ways:
            found = spread([1e6 * seconds[name] / (n * len(bags)) for seconds in rounds])
            target = {} if name == "diagnosis and jury" else {"at_most": 50}
            yield told(Row(name=f"{name}: a cell, in samples of {n:,}", unit="µs", **found, **target))


if __name__ == "__main__":
    main("jury", __doc__, [calibration, judging])
