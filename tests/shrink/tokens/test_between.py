import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.shrink.tokens.between import insert_
from foveal.shrink.tokens.foveate import look
from foveal.shrink.tokens.merge import Merge


def network(**words):
    torch.manual_seed(0)
    words = {"img_size": 20, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 3, **words}
    return VisionTransformer(**words).eval()


class Half(nn.Module):
    def forward(self, x):
        return x[:, ::2]


class Back(nn.Module):
    def forward(self, z, x):
        return torch.zeros_like(x).index_add(1, torch.arange(0, x.shape[1], 2), z)


def pictures():
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_modules_that_change_nothing_change_nothing():
    model = insert_(network(), {0: nn.Identity(), 2: nn.Identity()}, step="it")
    assert torch.equal(model(pictures()), network()(pictures()))
    assert model.state_dict().keys() == network().state_dict().keys()


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}])
def test_blocks_see_what_modules_leave(words):
    model, plain = insert_(network(**words), {1: Half()}, {1: Back()}, step="it"), network(**words)
    own = plain.num_prefix_tokens
    x = plain._pos_embed(plain.patch_embed(pictures()))
    x = plain.norm_pre(plain.patch_drop(x))
    x = plain.blocks[0](x)
    fewer = plain.blocks[1](torch.cat((x[:, :own], x[:, own::2]), 1))
    rest = x[:, own:].clone()
    rest[:, ::2] += fewer[:, own:]
    x = plain.blocks[2](torch.cat((fewer[:, :own], rest), 1))
    torch.testing.assert_close(model.forward_features(pictures()), plain.norm(x))
    route = look(model, pictures())
    assert route.counts == (25 + own, 13 + own, 25 + own)
    assert route.work.shape == (2, 1, 1)


def test_what_cannot_be_raises():
    with pytest.raises(TypeError, match="it needs a vision transformer of timm, got Linear; build one by timm"):
        insert_(nn.Linear(2, 2), {}, step="it")
    with pytest.raises(ValueError, match="modules must stand before one of 3 blocks, got number 3"):
        insert_(network(), {3: Half()}, step="it")
    with pytest.raises(ValueError, match="a fuser needs the module before its block, got a fuser alone at 1"):
        insert_(network(), {0: Half()}, {1: Back()}, step="it")
    for first in (lambda: insert_(network(), {1: Half()}, step="it"), lambda: Merge(r=2).apply(network())):
        with pytest.raises(ValueError, match=r"model makes tokens fewer already, by its .*; give it a fresh network"):
            insert_(first(), {1: Half()}, step="it")
