"""Two deep scorers beside the others: a neural spline flow (zuko) and deep SVDD (Ruff et al. 2018).

Run `python benchmarks/novelty_deep.py WORK SEED [SET ...]` after `novelty.py fit WORK SEED anomaly+att+sic`.
Needs `pip install zuko`. They are here and not in the `novelty` room, which needs no torch: the flow equals a
Gaussian, SVDD is behind it (docs/novelty.md).
"""

import sys
from pathlib import Path

import numpy as np
import torch
import zuko
from torch import nn

from hemomil.novelty.densities import Gaussian
from hemomil.streams import stream
from novelty import FILES, PAPER, single, table

EPOCHS = 30
BATCH = 256
PATIENCE = 3
"""Epochs without a better fit to held-out donors before a flow stops."""


def steps(cells, loss, parameters, rng):
    """One epoch of Adam."""
    order = torch.from_numpy(rng.permutation(len(cells)))
    for rows in torch.split(order, BATCH):
        parameters.zero_grad()
        loss(cells[rows]).backward()
        parameters.step()


def flow(space):
    """Minus the log density of whitened cells; a fifth of the donors say when to stop."""

    def score(fold):
        cells, donors = fold.cells(space), fold.obs["patient"].to_numpy()[fold.healthy]
        white = Gaussian.fit(cells[fold.healthy]).whiten
        healthy = torch.from_numpy(white(cells[fold.healthy])).float()
        rng, names = stream(fold.seed, "flow"), np.unique(donors)
        asked = torch.from_numpy(np.isin(donors, rng.permutation(names)[: max(1, len(names) // 5)]))
        model = best_flow(healthy[~asked], healthy[asked], rng)
        with torch.no_grad():
            test = torch.from_numpy(white(cells[fold.test])).float()
            return -torch.cat([model().log_prob(part) for part in test.split(1000)]).numpy()

    return score


def best_flow(seen, asked, rng):
    torch.manual_seed(0)
    model = zuko.flows.NSF(seen.shape[1], transforms=3, hidden_features=(64, 64))
    adam = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    best, kept, waited = np.inf, model.state_dict(), 0
    for _ in range(EPOCHS):
        steps(seen, lambda part: -model().log_prob(part).mean(), adam, rng)
        with torch.no_grad():
            reached = -model().log_prob(asked).mean().item()
        waited = 0 if reached < best else waited + 1
        if reached < best:
            best, kept = reached, {name: value.clone() for name, value in model.state_dict().items()}
        if waited == PATIENCE:
            break
    model.load_state_dict(kept)
    return model


def svdd(space):
    """Squared distance to the centre that a small network without biases pulls healthy cells to."""

    def score(fold):
        cells = torch.from_numpy(fold.cells(space)).float()
        healthy = cells[torch.from_numpy(fold.healthy)]
        cells = (cells - healthy.mean(dim=0)) / healthy.std(dim=0).clamp_min(1e-2)
        healthy, test = cells[torch.from_numpy(fold.healthy)], cells[torch.from_numpy(fold.test)]
        torch.manual_seed(0)
        layers = (nn.Linear(cells.shape[1], 64, bias=False), nn.LeakyReLU(), nn.Linear(64, 32, bias=False))
        model = nn.Sequential(*layers)
        with torch.no_grad():
            centre = model(healthy).mean(dim=0)
        adam = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
        rng = stream(fold.seed, "svdd")
        for _ in range(EPOCHS):
            steps(healthy, lambda part: (model(part) - centre).square().sum(dim=1).mean(), adam, rng)
        with torch.no_grad():
            return (model(test) - centre).square().sum(dim=1).numpy()

    return score


def main(work, seed, *sets):
    rows = {"paper": single(PAPER, "gaussian")}
    for space in (PAPER, "frozen"):
        rows |= {f"svdd / {space}": svdd(space), f"flow / {space}": flow(space)}
    table(Path(work), int(seed), sets or list(FILES), rows)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
