"""Evidence of foveal.models.sequence.convs5."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.evidence.rivals.recurrent import ConvLSTM, attention_step, training_step
from foveal.models.sequence.convs5 import ConvS5, ConvS5Layer, ConvS5Video
from foveal.record import equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _both_ways(*, parallel: bool) -> Tensor:
    """A film of 40 frames through a small network, all at once or frame by frame, float32."""
    torch.manual_seed(0)
    network, x = ConvS5Video(dim=8, depth=2, states=16, stride=2), torch.rand(2, 40, 1, 14, 18)
    with torch.inference_mode():
        if parallel:
            return network(x)
        out, states = network.predict(x[:, :1])
        made = [out]
        for t in range(1, 40):
            out, states = network.predict(x[:, t : t + 1], states)
            made.append(out)
        return torch.cat(made, 1)


def _per_pixel(*, convolution: bool) -> Tensor:
    """With 1×1 kernels, the recurrence of all pixels, or a plain state-space model of each with matrices, float64."""
    torch.manual_seed(0)
    layer, x = ConvS5(3, states=8, kernel_size=1).double(), torch.randn(2, 20, 3, 4, 5, dtype=torch.float64)
    with torch.inference_mode():
        if convolution:
            return layer(x)[0]
        eigenvalues = torch.complex(layer.decay, layer.frequency)
        scaled = eigenvalues * layer.log_step.exp()
        real, imaginary = layer.entering[..., 0, 0].chunk(2)
        entering = (torch.expm1(scaled) / eigenvalues)[:, None] * torch.complex(real, imaginary)
        leaving = torch.complex(*layer.leaving[..., 0, 0].chunk(2, 1))
        # (B·H·W, T, C)
        pixels = x.permute(0, 3, 4, 1, 2).flatten(0, 2).to(entering.dtype)
        state, outputs = pixels.new_zeros(pixels.shape[0], 4), []
        for place in pixels.unbind(1):
            state = state @ torch.diag(torch.exp(scaled)) + place @ entering.T
            outputs.append(2 * (state @ leaving.T).real)
        return torch.stack(outputs, 1).view(2, 4, 5, 20, 3).permute(0, 3, 4, 1, 2)


def _next_frame(history: int) -> Callable[[], Tensor]:
    """The step from one frame to the next after so many frames."""
    torch.manual_seed(0)
    network = ConvS5Video(dim=32, depth=2, states=32, stride=2).eval()
    with torch.inference_mode():
        _, states = network.predict(torch.rand(1, history, 1, 32, 32))
    frame = torch.rand(1, 1, 1, 32, 32)

    def call() -> Tensor:
        with torch.inference_mode():
            return network.predict(frame, states)[0]

    return call


@lru_cache(maxsize=4)
def _errors(seed: int) -> dict[str, float]:
    """Squared errors on films not trained on: of frames after the fifth from those before, and of the last eight.

    The last eight are generated, each from the one made before; beside both, the last frame seen, repeated.
    """
    import os

    from foveal.evidence.tasks.digits import moving_digits
    from foveal.train.brief import STEPS

    steps, films = int(os.environ.get(STEPS, "250")), moving_digits("train", 400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvS5Video(dim=32, depth=2, states=32, stride=2)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-5)
        falling = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps)
        )
        for _ in range(steps):
            film = films[torch.randint(len(films), (4,))]
            loss = F.mse_loss(network(film[:, :-1]), film[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            falling.step()
    tests = moving_digits("test", 60)
    seen, unseen = tests.split([12, 8], 1)
    with torch.inference_mode():
        made, foreseen = network.eval().generate(seen, 8), network(tests)[:, 4:-1]
    return {
        "next": float(F.mse_loss(foreseen, tests[:, 5:])),
        "next repeated": float(F.mse_loss(tests[:, 4:-1], tests[:, 5:])),
        "made": float(F.mse_loss(made, unseen)),
        "made repeated": float(F.mse_loss(seen[:, -1:].expand_as(unseen), unseen)),
    }


CLAIMS = (
    equal(
        "All frames at once give what they give one by one.",
        ours=lambda: _both_ways(parallel=True),
        theirs=lambda: _both_ways(parallel=False),
        tolerance=1e-4,
    ),
    equal(
        "With 1×1 convolutions it is a state-space model of each pixel.",
        ours=lambda: _per_pixel(convolution=True),
        theirs=lambda: _per_pixel(convolution=False),
        tolerance=1e-10,
    ),
    faster(
        "A training step over 64 frames takes less time than that of a ConvLSTM of the same width.",
        paper="3 times",
        ours=lambda: training_step(lambda: ConvS5Layer(32, states=32), 1, 64, 32, 16, 16),
        theirs=lambda: training_step(lambda: ConvLSTM(32), 1, 64, 32, 16, 16),
    ),
    faster(
        "The next frame takes as long after 256 frames as after 8.",
        paper="constant",
        ours=lambda: _next_frame(256),
        theirs=lambda: _next_frame(8),
        at_least=0.8,
    ),
    faster(
        "The next frame of a whole network takes less time than one layer of attention to 300 frames.",
        paper="400 times faster than a transformer",
        ours=lambda: _next_frame(300),
        theirs=lambda: attention_step(256, 300 * 256, 32),
    ),
    smaller(
        "Two digits that move in 32×32 pixels: its next frame has at most two thirds of the last frame's error.",
        paper="",
        ours=lambda: _errors(0)["next"],
        theirs=lambda: _errors(0)["next repeated"],
        at_least=1.5,
        needs=("minutes",),
    ),
    smaller(
        "So have eight frames that it generates after twelve, beside the twelfth repeated.",
        paper="",
        ours=lambda: _errors(0)["made"],
        theirs=lambda: _errors(0)["made repeated"],
        at_least=1.5,
        needs=("minutes",),
    ),
)
