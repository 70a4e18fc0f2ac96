import copy
from functools import partial

import pytest
import torch
from torch import nn

import foveal
from foveal.adapt import AdaptError, Delta
from foveal.adapt.attach import attach_, difference
from foveal.adapt.bi_adaptformer import (
    BinaryAdapter,
    BinaryPart,
    PackedLowRank,
    adaptformer_,
    load_adapters_,
    save_adapters,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def network():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(6, 3)).eval()


def with_adapters(model, hidden=5):
    work = copy.deepcopy(model)
    for adapter in adaptformer_(work, hidden=hidden, scale=0.5).values():
        nn.init.normal_(adapter.up.weight)
    return work


def test_a_packed_change_is_what_was_trained(tmp_path):
    model = network()
    work = copy.deepcopy(model)
    made = attach_(work, partial(BinaryPart, rank=3), where=lambda name, _: name == "0.mlp.0")["0.mlp.0.weight"]
    nn.init.normal_(made.up.weight)
    used = made(torch.zeros(9, 6))
    delta = difference(model, work)
    delta.save(tmp_path / "delta.safetensors")
    read = Delta.load(tmp_path / "delta.safetensors")
    change = read.changes["0.mlp.0.weight"]
    assert isinstance(change, PackedLowRank)
    assert torch.equal(change.difference(), used)  # bit for bit
    assert read.bytes == 4 + 3 + 4 * 4 + 4 * 4  # ⌈27 / 8⌉, ⌈18 / 8⌉, μ and σ of both, sizes
    torch.testing.assert_close((0.5 * read).changes["0.mlp.0.weight"].difference(), 0.5 * used)
    read.fold_(model)
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), work(x), atol=1e-6, rtol=1e-5)


def test_an_adapter_is_its_formula_and_learns():
    mlp = nn.Linear(6, 6)
    adapter = BinaryAdapter(mlp, 6, hidden=4, scale=0.3)
    x = torch.randn(2, 5, 6)
    up, down = adapter.up(), adapter.down()
    assert len(up.unique()) == len(down.unique()) == 2
    plain = mlp(x) + 0.3 * torch.einsum("ch,bnh->bnc", up, torch.einsum("hc,bnc->bnh", down, x).clamp(min=0))
    torch.testing.assert_close(adapter(x), plain)
    adapter(x).square().sum().backward()
    assert min(m.weight.grad.abs().sum() for m in (adapter.up, adapter.down)) > 0


def test_adapters_reload_bit_for_bit(tmp_path):
    model = network()
    saved = with_adapters(model)
    assert {name for name, p in saved.named_parameters() if p.requires_grad} == {
        f"{block}.mlp.{side}.weight" for block in "01" for side in ("up", "down")
    }
    save_adapters(saved, tmp_path / "bits.safetensors")
    other = with_adapters(model)
    x = torch.randn(3, 6)
    assert not torch.equal(other(x), saved(x))
    load_adapters_(other, tmp_path / "bits.safetensors")
    assert torch.equal(other(x), saved(x))
    with pytest.raises(AdaptError, match=r"no 3 bytes for '0\.mlp\.down'; insert adapters of the sizes"):
        load_adapters_(with_adapters(model, hidden=4), tmp_path / "bits.safetensors")


def test_it_learns_by_its_name():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    delta = foveal.adapt(network(), x, torch.arange(20) % 3, method="one-bit", steps=2).delta
    assert sum(isinstance(change, PackedLowRank) for change in delta.changes.values()) == 4


def test_what_it_refuses():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        BinaryPart(torch.zeros(2, 2), rank=0)
    with pytest.raises(AdaptError, match="Linear has no module called mlp; use bi_adaptformer"):
        adaptformer_(nn.Linear(2, 2))
