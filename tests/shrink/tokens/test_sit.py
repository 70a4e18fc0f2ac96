import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distillation
from foveal.shrink.tokens.sit import Reverse, SiT, Slim, SlimmingLoss, slim_


def network(**words):
    torch.manual_seed(0)
    words = {"img_size": 12, "patch_size": 3, "embed_dim": 8, "depth": 4, "num_heads": 2, "num_classes": 3, **words}
    return VisionTransformer(**words).eval()


def pictures(seed=1):
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_convex_combinations():
    torch.manual_seed(0)
    module, x = Slim(6, 3).double(), torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True)
    module.scale.data.fill_(2.5)
    weights = module.weights(x)
    assert weights.shape == (2, 3, 7)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, dtype=torch.double))
    norm, first, _, last = module.scores
    scores = module.scale * last(F.gelu(first(norm(x))))
    wanted = torch.einsum("bnm,bnc->bmc", scores.exp() / scores.exp().sum(1, keepdim=True), x)
    torch.testing.assert_close(module(x), wanted)
    toward = torch.randn(wanted.shape, dtype=torch.double)
    gradients = [torch.autograd.grad((y * toward).sum(), [x, module.scale]) for y in (module(x), wanted)]
    torch.testing.assert_close(*gradients)


def test_tokens_become_fewer_and_the_class_token_passes():
    model, seen = slim_(network(), after=(1, 3), keep=0.5), []
    for number in range(4):
        model.blocks.get_submodule(str(number)).register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    assert model.forward_features(pictures()).shape == (2, 5, 8)
    assert seen == [17, 9, 9, 5]


def test_reversing_gives_as_many_tokens():
    z = torch.randn(2, 3, 6)
    module = Reverse(6, 3, 11)
    u = torch.einsum("bmc,nm->bnc", module.norm(z), torch.eye(3))
    inner = F.gelu(u.transpose(1, 2) @ module.over_tokens[0].weight.T + module.over_tokens[0].bias)
    u = (inner @ module.over_tokens[2].weight.T + module.over_tokens[2].bias).transpose(1, 2)
    torch.testing.assert_close(module(z), u + module.over_channels(u))
    assert module(z).shape == (2, 11, 6)


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}])
def test_the_loss_compares_patches_of_every_block(words):
    teacher, labels = network(**words), torch.tensor([0, 2])
    student = slim_(copy.deepcopy(teacher), after=(2,), keep=0.5)
    loss = SlimmingLoss(student, F.cross_entropy, feature=0.7, logits=0.3, temperature=2.0)
    assert loss.student_taps == ("blocks.0", "blocks.before_2", "blocks.2", "blocks.3")
    assert [type(m) for m in loss.reverse] == [nn.Identity, Reverse, Reverse, Reverse]
    taps = {"student_taps": loss.student_taps, "teacher_taps": loss.teacher_taps}
    both = Distillation(student, teacher, loss, **taps)
    views, own = both.views(pictures(), labels), teacher.num_prefix_tokens
    gaps = [
        (reverse(made[:, 0 if i == 1 else own :]) - taught[:, own:]).square().mean()
        for i, (reverse, made, taught) in enumerate(
            zip(loss.reverse, views.student_features, views.teacher_features, strict=True)
        )
    ]
    assert gaps[0].item() == 0  # nothing is slimmed yet
    logits, soft = student(pictures()), (teacher(pictures()) / 2).softmax(1)
    divergence = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1).mean() * 4
    wanted = F.cross_entropy(logits, labels) + 0.3 * divergence + 0.7 * sum(gaps) / 4
    torch.testing.assert_close(loss(views), wanted)
    loss(views).backward()
    assert {n for n, p in both.named_parameters() if p.grad is None} == set()


def test_it_trains_where_there_are_labels():
    data = Data(
        pictures(), lambda _: 0.0, batches=lambda step: (pictures(step), torch.tensor([0, 2])), loss=F.cross_entropy
    )
    step = SiT(after=(2,), steps=1, lr=0.01)
    torch.manual_seed(3)
    fresh = step.apply(network())
    torch.manual_seed(3)
    taught = step.apply(network(), data)
    assert fresh.state_dict().keys() == taught.state_dict().keys()
    assert not torch.allclose(fresh(pictures()), taught(pictures()))


def test_wrong_settings_raise():
    for after in ((), (2, 1), (0,)):
        with pytest.raises(ValueError, match="after must be rising numbers of blocks from 1 on, got"):
            SiT(after=after)
    for keep in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\), got {keep}; 0.5 leaves half each time"):
            SiT(keep=keep)
    with pytest.raises(ValueError, match=r"after must stay below the 4 blocks, got \(1, 4\); the last has no use"):
        SiT(after=(1, 4)).apply(network())
    with pytest.raises(ValueError, match=r"keep must leave a token of 16 after 2 modules, got 0\.2; raise it"):
        SiT(after=(1, 2), keep=0.2).apply(network())
    with pytest.raises(TypeError, match="SiT needs a vision transformer of timm, got Linear"):
        SiT().apply(nn.Linear(2, 2))
