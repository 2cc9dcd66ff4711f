"""Distances by products are those of a triangular solve, in double precision and where single is used."""

import numpy as np
import pytest
import torch

from hemomil import products
from hemomil.mil.reference import HealthyReference
from hemomil.mil.whitening import BLOCK, INFLATION, MANY, PANEL, Whitening


def covariance(kind, size, rng):
    """Covariances as embeddings have them, and worse."""
    mixing = rng.normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    if kind == "few directions":
        mixing = rng.normal(size=(size // 8, size))
    elif kind == "decaying":
        mixing = np.linalg.qr(mixing)[0] * np.arange(1, size + 1)[:, None] ** -0.5
    found = mixing.T @ mixing
    if kind == "dead units":
        found[: size // 3] = found[:, : size // 3] = 0
    if kind == "other units":
        scales = 10 ** rng.uniform(-4, 4, size)
        found *= np.outer(scales, scales)
        return found
    return found + 1e-6 * np.eye(size)


KINDS = ["mixed", "few directions", "decaying", "dead units", "other units"]


@pytest.fixture(params=[(kind, size) for kind in KINDS for size in (MANY + PANEL + 5, 64)], ids=str)
def gaussian(request):
    """Mean, lower factor; cells of the Gaussian, and strange ones: all over, and in one dimension."""
    kind, size = request.param
    rng = np.random.default_rng(size)
    spread = covariance(kind, size, rng)
    deviations = np.sqrt(np.diag(spread))
    mean, factor = 10 * deviations * rng.normal(size=size), np.linalg.cholesky(spread)
    usual = mean + rng.normal(size=(BLOCK + 50, size)) @ factor.T
    strange = usual + 5 * deviations * rng.normal(size=usual.shape)
    in_one = usual + 30 * deviations * np.eye(size)[rng.integers(size, size=len(usual))]
    cells = np.concatenate([usual, strange, in_one])
    return [torch.from_numpy(found) for found in (mean, factor, cells)]


@pytest.fixture(params=["torch's", "oneDNN's"])
def product(request, monkeypatch):
    """Who multiplies."""
    if request.param == "oneDNN's" and not products.has_onednn():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param == "oneDNN's")


def solved(mean, factor, cells):
    white = torch.linalg.solve_triangular(factor, (cells.double() - mean).T, upper=False)
    return torch.linalg.vector_norm(white, dim=0)


def test_in_double_precision_they_are_the_same(gaussian):
    mean, factor, cells = gaussian
    found = Whitening(mean, factor).distance(cells)
    torch.testing.assert_close(found, solved(mean, factor, cells), rtol=1e-11, atol=0)


@pytest.mark.usefixtures("product")
def test_in_single_precision_no_distance_is_off_by_more_than_a_millionth(gaussian):
    mean, factor, cells = gaussian
    found = Whitening(mean, factor).distance(cells.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), solved(mean, factor, cells.float()), rtol=1e-6, atol=0)


def test_single_precision_alone_would_be_wrong_where_few_directions_matter():
    """What the limit is for: without it the test above fails."""
    rng = np.random.default_rng(0)
    factor = torch.linalg.cholesky(torch.from_numpy(covariance("few directions", MANY, rng)))
    whitening = Whitening(torch.zeros(MANY).double(), factor)
    assert whitening.inflation > INFLATION
    cells = (torch.from_numpy(rng.normal(size=(200, MANY))) @ factor.T).float()
    exact = solved(whitening.mean, factor, cells)
    alone = torch.linalg.vector_norm(cells @ whitening.inverse.float(), dim=1).double()
    assert ((alone / exact - 1).abs() > 1e-6).double().mean() > 0.5


def test_single_precision_is_used_where_it_is_enough(monkeypatch):
    whitening = Whitening(torch.zeros(MANY).double(), torch.eye(MANY).double())
    monkeypatch.setattr(Whitening, "_in_double", lambda self, cells: torch.full((len(cells),), torch.nan))
    assert torch.isfinite(whitening.distance(torch.ones(3, MANY))).all()
    assert torch.isnan(whitening.distance(torch.ones(3, MANY).double())).all()


def test_a_cell_that_is_the_mean_has_no_distance():
    whitening = Whitening(torch.full((4,), 0.1).double(), torch.eye(4).double())
    assert whitening.distance(torch.full((1, 4), 0.1).double()).tolist() == [0]
    assert whitening.distance(torch.zeros(0, 4)).shape == (0,)


def test_a_cell_far_beyond_single_precision_is_measured_in_double():
    whitening = Whitening(torch.zeros(MANY).double(), 1e-12 * torch.eye(MANY).double())
    cell = torch.zeros(1, MANY)
    cell[0, 0] = 1e10
    torch.testing.assert_close(whitening.distance(cell), torch.tensor([1e22]))


def test_a_loaded_reference_measures_as_the_saved_one():
    rng = np.random.default_rng(3)
    saved, loaded = HealthyReference(6), HealthyReference(6)
    mean, spread = torch.from_numpy(rng.normal(size=6)), torch.from_numpy(covariance("mixed", 6, rng))
    saved.set_gaussian(mean, spread)
    loaded.load_state_dict(saved.state_dict())
    cells = torch.from_numpy(rng.normal(size=(5, 6)))
    torch.testing.assert_close(loaded.distance(cells), saved.distance(cells), rtol=0, atol=0)
    assert "whitening" not in " ".join(saved.state_dict())
