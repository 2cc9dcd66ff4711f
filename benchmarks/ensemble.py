"""The networks of `default` and its witnesses trained at once, against one after another.

Eleven networks on vectors of 62 features, packs of 16 bags; the same weights afterwards. Run
`OMP_NUM_THREADS=1 python benchmarks/ensemble.py [--json FILE]` (a minute).
"""

import torch

from hemomil.mil.settings import PARTS, MILSettings
from hemomil.mil.side_by_side import train_vectors
from hemomil.mil.train import Trainer, TrainingBags
from mil import weights_apart
from timing import main, versus

FEATURES, EPOCHS, GROUPS = 62, 2, 5
CPU = torch.device("cpu")
SETTINGS = MILSettings.preset("default", epochs=EPOCHS)
DEFAULT = PARTS["default"]
MEMBERS = [*range(SETTINGS.members), *[1] * GROUPS]
"""A witness is as the second member."""
PARTS_OF_ALL = [DEFAULT.of_member(member) for member in MEMBERS]


def bags_of_all(n_bags, n_cells):
    """What each network learns from: members from all bags, a witness from those of four groups of donors."""
    generator = torch.Generator().manual_seed(0)
    cells = [torch.randn(n_cells, FEATURES, generator=generator) for _ in range(n_bags)]
    targets = torch.arange(n_bags) % 2
    for bag, target in zip(cells, targets.tolist(), strict=True):
        bag[: n_cells // 4, target] += 1.5
    group = torch.arange(n_bags) % GROUPS
    everyone = TrainingBags(cells, targets, torch.where(targets == 0, group, -1))
    witnesses = [everyone.at(torch.nonzero(group != left)[:, 0]) for left in range(GROUPS)]
    return [everyone] * SETTINGS.members + witnesses


def ensembles():
    """Bags of few and of more cells; of more than 256 each network is trained by itself."""
    for n_bags, n_cells in ((180, 30), (90, 60), (64, 120)):
        known = bags_of_all(n_bags, n_cells)

        def plain(known=known):
            return [
                Trainer(bags, parts, (FEATURES,), 2, SETTINGS, seed=seed, device=CPU).run()
                for seed, (bags, parts) in enumerate(zip(known, PARTS_OF_ALL, strict=True))
            ]

        def ours(known=known):
            seeds = range(len(known))
            return train_vectors(known, PARTS_OF_ALL, seeds, (FEATURES,), 2, SETTINGS, CPU)

        apart = max(weights_apart(*pair) for pair in zip(map(told, ours()), map(told, plain()), strict=True))
        assert apart < 1e-4, f"weights are {apart:.1e} apart"
        yield versus(
            f"eleven networks of `default`, {EPOCHS} epochs of {n_bags} bags of {n_cells} cells: one by one",
            plain,
            ours,
            error=apart,
            allowed=1e-4,
            note="largest distance between two layers' weights, next to their length",
        )


def told(network):
    """The network without the bias that a softmax does not see: only rounding moves it."""
    if network.attention is not None:
        torch.nn.init.ones_(network.attention[2].bias)
    return network


if __name__ == "__main__":
    main("ensemble", __doc__, [ensembles])
