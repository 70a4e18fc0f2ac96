import pytest
import torch
import torch.nn.functional as F

from foveal.adapt.ape_clip import APE, APET, ape_t, channel_scores, channel_scores_by_pairs, searched


def features(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("classes", "shots", "dim"), [(2, 1, 1), (5, 3, 7), (3, 0, 4)])
def test_scores_by_pairs(classes, shots, dim):
    text, cache = features(classes, dim).requires_grad_(), features(classes, shots, dim, seed=1).requires_grad_()
    found, wanted = channel_scores(text, cache), channel_scores_by_pairs(text, cache)
    torch.testing.assert_close(found, wanted)
    probe = torch.linspace(-1, 1, dim, dtype=torch.float64) + 0.5
    first, second = (torch.autograd.grad((s * probe).sum(), [text, cache]) for s in (found, wanted))
    torch.testing.assert_close(first, second)


def test_a_channel_that_all_classes_share_scores_lowest():
    text = F.normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), dim=-1)
    scores = channel_scores(text, text[:, None])
    assert scores.argmin() == 0
    assert APE(text, text[:, None], channels=2).chosen.tolist() == [1, 2]


def by_hand(text, shots, x, *, channels, alpha, beta, gamma):
    """Loops over pictures, classes and shots."""
    kept = channel_scores_by_pairs(text, shots).topk(channels).indices

    def short(v):
        return v[kept] / v[kept].norm()

    logits = torch.zeros(len(x), len(text), dtype=x.dtype)
    for b, f in enumerate(x):
        for k, w in enumerate(text):
            logits[b, k] = 100 * f @ w
            for shot in shots[k]:
                p = torch.stack([short(shot) @ short(v) for v in text]).softmax(0)[k]
                weight = (gamma * torch.log2((1 + 1e-6) / (p + 1e-6))).exp()
                logits[b, k] += alpha * (-beta * (1 - short(f) @ short(shot))).exp() * weight
    return logits


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_the_logits_by_loops(channels):
    text, shots, x = features(3, 6), features(3, 2, 6, seed=1), features(5, 6, seed=2)
    words = {"channels": channels, "alpha": 1.7, "beta": 2.5, "gamma": 0.3}
    torch.testing.assert_close(APE(text, shots, **words)(x), by_hand(text, shots, x, **words))


def test_all_channels_and_equal_weights_are_tip_adapter():
    text, shots, x = features(3, 6), features(3, 2, 6, seed=1), features(5, 6, seed=2)
    labels = F.one_hot(torch.arange(3).repeat_interleave(2)).double()
    wanted = 100 * x @ text.T + 2 * torch.exp(-3 * (1 - x @ shots.flatten(0, 1).T)) @ labels
    torch.testing.assert_close(APE(text, shots, channels=6, alpha=2, beta=3, gamma=0)(x), wanted)
    # untrained, APE-T differs by nothing but the channels of the affinity
    torch.testing.assert_close(APET(text, shots, channels=4, alpha=2, beta=3)(x), wanted)


def test_the_trained_values():
    text, shots = features(3, 6).float(), features(3, 2, 6, seed=1).float()
    model = ape_t(text, shots, channels=4, steps=30, lr=0.01)
    assert sum(p.numel() for p in model.parameters()) == 3 * 4 + 3 * 2
    labels = torch.arange(3).repeat_interleave(2)
    before = APET(text, shots, channels=4)
    with torch.no_grad():
        loss = [float(F.cross_entropy(m(model.keys), labels)) for m in (before, model)]
    assert loss[1] < loss[0]
    # a residual moves the chosen channels of a class's text and shots, nothing else
    with torch.no_grad():
        before.residual[1] = 1.0
        moved = text.clone()
        moved[1, before.chosen] += 1
        cache = shots.clone()
        cache[1, :, before.chosen] += 1
        affinity = torch.exp(-(1 - text @ cache.flatten(0, 1).T))
        torch.testing.assert_close(before(text), 100 * text @ moved.T + affinity @ before.labels())


def test_the_search_keeps_the_best():
    text, shots = features(3, 6), features(3, 2, 6, seed=1)
    x, labels = shots.flatten(0, 1), torch.arange(3).repeat_interleave(2)
    model = APE(text, shots, channels=6, alpha=0.0)

    def right():
        return int((model(x).argmax(-1) == labels).sum())

    before = right()
    searched(model, x, labels, alphas=(0.0, 1e4), betas=(5.0,), gammas=(0.0,))
    assert before < 6
    assert right() == 6
    assert (model.alpha, model.beta, model.gamma) == (1e4, 5.0, 0.0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: channel_scores(features(1, 4), features(1, 2, 4)), r"text must be \(K, D\) for at least two classes"),
        (lambda: channel_scores(features(3, 4), features(2, 2, 4)), r"got \(3, 4\) and \(2, 2, 4\)"),
        (lambda: channel_scores(features(3, 4), features(3, 2, 4), weight=2), r"weight must be in \[0, 1\], got 2"),
        (lambda: APE(features(3, 4), features(3, 2, 4), channels=5), "channels must be in 1…4, the width"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
