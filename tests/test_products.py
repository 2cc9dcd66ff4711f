"""Layers by oneDNN give the numbers and gradients of torch's own, where they are used and where not."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from hemomil import products
from hemomil.products import Layer, linear

needs_onednn = pytest.mark.skipif(not products.has_onednn(), reason="torch without oneDNN")


@pytest.fixture
def by_onednn(monkeypatch):
    """oneDNN multiplies, whatever the processor; gives what it was asked."""
    asked = []
    multiply = products.multiplied_by_onednn
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "multiplied_by_onednn", lambda *what: asked.append(what) or multiply(*what))
    return asked


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients_of(way, *leaves):
    leaves = [None if leaf is None else leaf.detach().clone().requires_grad_() for leaf in leaves]
    values = way(*leaves)
    values.square().sum().backward()
    return values.detach(), [leaf.grad for leaf in leaves if leaf is not None]


@needs_onednn
@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_and_its_gradients_are_torch_s(by_onednn, rows, biased):
    leaves = drawn(rows, 48), drawn(20, 48, seed=1), drawn(20, seed=2) if biased else None
    found, gradients = gradients_of(linear, *leaves)
    doubles = [leaf if leaf is None else leaf.double() for leaf in leaves]
    expected, of_double = gradients_of(functional.linear, *doubles)
    assert len(by_onednn) == (3 if rows else 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, of_double, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_rectified_as_if_by_a_layer_of_its_own(by_onednn):
    leaves = drawn(37, 48), drawn(20, 48, seed=1), drawn(20, seed=2)
    found, gradients = gradients_of(partial(linear, positive=True), *leaves)
    expected, of_plain = gradients_of(lambda *of: functional.linear(*of).relu(), *leaves)
    assert by_onednn
    assert (found == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, of_plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("kind", ["steps over others", "part of a row", "transposed"])
def test_weights_with_gaps_are_read_right_and_never_by_slow_code(by_onednn, kind, capfd):
    weight = {
        "steps over others": drawn(20, 96)[:, ::2],
        "part of a row": drawn(20, 96)[:, 5:53],
        "transposed": drawn(48, 20).T,
    }[kind]
    rows = drawn(300, 96)[:, :48]
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        found = linear(rows, weight)
    told = capfd.readouterr().out
    assert "inner_product" in told
    assert "ref:any" not in told
    torch.testing.assert_close(found, functional.linear(rows, weight), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_only_single_precision_is_onednn_s(by_onednn, monkeypatch):
    rows, weight, bias = drawn(5, 8), drawn(3, 8), drawn(3)
    for kind in (torch.float64, torch.bfloat16):
        of_kind = [values.to(kind) for values in (rows, weight, bias)]
        assert torch.equal(linear(*of_kind), functional.linear(*of_kind))
        assert torch.equal(linear(*of_kind, positive=True), functional.linear(*of_kind).relu())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(rows, weight, bias).dtype == torch.bfloat16
    with monkeypatch.context() as switched:
        switched.setattr(torch.backends.mkldnn, "enabled", False)
        linear(rows, weight, bias)
    assert not by_onednn
    linear(rows, weight, bias)
    assert len(by_onednn) == 1


@needs_onednn
@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ({"cpu_name": "AMD EPYC 9755 128-Core Processor", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC 7763 64-Core Processor", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_f": True}, False),
        ({"architecture": "arm64", "neon": True}, False),
    ],
)
def test_the_processor_decides(monkeypatch, processor, faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert products.onednn_is_faster.__wrapped__() is faster


def test_torch_without_onednn_multiplies_by_itself(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD", "avx512_f": True})
    assert products.onednn_is_faster.__wrapped__() is False


@needs_onednn
def test_a_layer_that_multiplies_so_has_the_weights_of_the_one_it_stands_for(by_onednn):
    plain = torch.nn.Linear(48, 20)
    before = torch.get_rng_state()
    layer = Layer.standing_for(plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert not by_onednn
    rows = drawn(37, 48)
    torch.testing.assert_close(layer(rows), plain(rows), rtol=1e-5, atol=1e-5)
    assert len(by_onednn) == 1
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert layer.state_dict().keys() == plain.state_dict().keys()
