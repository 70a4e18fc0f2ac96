import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.vlm.longvivit import Contrast, VideoEncoder, draw, inflate, info_nce, tubes
from foveal.vlm.method import VlmError


def encoder(shape=(6, 4, 8), tube=(3, 2), **words):
    torch.manual_seed(0)
    return VideoEncoder(shape, tube=tube, dim=8, depth=2, num_heads=2, out_channels=5, in_channels=2, **words).double()


def film(count=3, frames=6):
    return torch.rand(count, 2, frames, 4, 8, generator=torch.Generator().manual_seed(1)).double()


def test_tubes_go_frame_by_frame_and_row_by_row():
    video = torch.arange(2 * 4 * 4 * 6.0).view(1, 2, 4, 4, 6)
    cut = tubes(video, (2, 2))
    assert cut.shape == (1, 2 * 2 * 3, 2 * 2 * 2 * 2)
    assert torch.equal(cut[0, 1], video[0, :, :2, :2, 2:4].flatten())
    assert torch.equal(cut[0, 3], video[0, :, :2, 2:, :2].flatten())
    assert torch.equal(cut[0, 6], video[0, :, 2:, :2, :2].flatten())


def test_dropped_tubes_are_other_ones_in_each_video_and_step():
    generator = torch.Generator().manual_seed(0)
    kept = draw(200, 16, 0.75, generator=generator)
    assert kept.shape == (200, 4)
    assert (kept.diff(dim=1) > 0).all()
    often = kept.flatten().bincount(minlength=16)
    assert often.min() > 25  # 50 of 200 each, 6.1 standard deviations off
    assert len({tuple(row) for row in kept.tolist()}) > 150
    assert not torch.equal(kept, draw(200, 16, 0.75, generator=generator))


@pytest.mark.parametrize(
    ("total", "ratio", "left"), [(256, 0.75, 64), (10, 0.75, 3), (7, 0.0, 7), (10, 0.9, 1), (1, 0.9, 1)]
)
def test_how_many_are_kept(total, ratio, left):
    assert draw(2, total, ratio).shape == (2, left)


def test_all_tubes_kept_are_all_tubes():
    model, video = encoder(), film()
    torch.testing.assert_close(model(video, draw(3, model.count, 0.0)), model(video))


def test_what_is_dropped_is_not_seen():
    model, video = encoder(), film()
    kept = torch.tensor([[0, 5, 9]]).expand(3, -1)
    other = video.clone()
    other[:, :, :3, :2, 2:4] += 1  # tube 1
    assert torch.equal(model(video, kept), model(other, kept))
    assert not torch.allclose(model(video), model(other))
    video.requires_grad_()
    model(video, kept).sum().backward()
    touched = tubes(video.grad, (3, 2)).abs().amax(2)
    assert (touched[:, [0, 5, 9]] > 0).all()
    assert touched.count_nonzero() == 9


def test_a_tube_keeps_its_own_position():
    model = encoder()
    assert torch.equal(model.position[5], model.time[0] + model.place[5])
    assert torch.equal(model.position[8 + 3], model.time[1] + model.place[3])
    alike = torch.full_like(film(), 0.5)
    first, last = (model(alike, torch.full((3, 1), n)) for n in (0, 15))
    assert not torch.allclose(first, last)


def test_embeddings_have_unit_length_and_everything_learns():
    model = encoder()
    out = model(film(), draw(3, 16))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3).double())
    (out @ torch.rand(5).double()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_still_video_is_its_frame():
    image = encoder((1, 4, 8), (1, 2))
    video, frame = inflate(image, 9, 3), film(frames=1)
    assert video.count == 3 * 8
    still = video(frame.expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(still, image(frame))
    assert not torch.allclose(video(film(frames=9)), still)
    with torch.no_grad():
        video.place.zero_()
    assert image.place.abs().sum() > 0


def test_nce_by_hand():
    video, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cosines times 2: [[2, 1.2], [0, 1.6]]
    rows = math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))
    columns = math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))
    assert float(info_nce(video, text, 2.0)) == pytest.approx((rows + columns) / 4)


def test_tubes_are_dropped_in_training_only():
    counts = []
    model = Contrast(encoder(), nn.Linear(4, 5).double(), ratio=0.75)
    model.video.embed.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    video, words = film(), torch.rand(3, 4).double()
    torch.manual_seed(0)
    model(video, words)
    value = model.eval()(video, words)
    assert counts == [4, 16]
    torch.testing.assert_close(
        value, info_nce(model.video(video), F.normalize(model.text(words), dim=1), 14.0), rtol=1e-5, atol=0
    )
    value.backward()
    assert model.scale.grad is not None


def test_errors():
    with pytest.raises(
        VlmError, match=r"video must be \(B, C, T, H, W\) in whole tubes of 2 frames and 2×2 pixels, got "
    ):
        tubes(torch.rand(1, 2, 3, 4, 4), (2, 2))
    with pytest.raises(VlmError, match=r"ratio must be in \[0, 1\), got 1; 0.75 drops three of four tubes"):
        draw(1, 4, 1)
    with pytest.raises(VlmError, match=r"ratio must be in \[0, 1\), got 1.5"):
        Contrast(encoder(), nn.Identity(), ratio=1.5)
    with pytest.raises(VlmError, match=r"the encoder reads videos of \(2, 6, 4, 8\), .* got \(2, 6, 4, 4\); resize"):
        encoder()(film()[..., :4])
    with pytest.raises(
        VlmError, match="an encoder of one frame becomes one of whole tubes, got 6 frames, and 8 in tubes of 4"
    ):
        inflate(encoder(), 8, 4)
    with pytest.raises(VlmError, match="got 1 frames, and 8 in tubes of 3"):
        inflate(encoder((1, 4, 8), (1, 2)), 8, 3)
