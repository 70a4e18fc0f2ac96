"""Evidence for ConvS5: scan against recurrence, cost of a frame against attention's, errors against a ConvLSTM's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.recurrent import ConvLSTM, FrameAttention, attention_step
from foveal.evidence.tasks import moving_digits
from foveal.evidence.timing import seconds, step
from foveal.models.sequence.convs5 import ConvS5, ConvS5Layer, ConvS5Video
from foveal.record import equal, faster, grows

if TYPE_CHECKING:
    from collections.abc import Callable

small = partial(ConvS5Video, dim=32, depth=2, states=32, stride=2)
STEPS = 200


def _with(layer: Callable[[int], nn.Module]) -> ConvS5Video:
    """The small network with other layers between its encoder and decoder."""
    network = small()
    network.layers = nn.ModuleList(layer(32) for _ in network.layers)
    return network


conv_lstm, attention = partial(_with, ConvLSTM), partial(_with, FrameAttention)


def _both_ways(*, parallel: bool) -> Tensor:
    """Output of a small network for a video of 40 frames, all at once or frame by frame, float32."""
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
    """The recurrence of all pixels with 1×1 kernels, or a plain state-space model of each with matrices, float64."""
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


@cached(maxsize=10)
def _next_frame(build: Callable[[], ConvS5Video], history: int, *, side: int = 16) -> Callable[[], Tensor]:
    """The step to the next frame, from the state after `history` frames."""
    torch.manual_seed(0)
    network, states = build().eval(), None
    with torch.inference_mode():
        for _ in range(history):
            _, states = network.predict(torch.rand(1, 1, 1, side, side), states)
    frame = torch.rand(1, 1, 1, side, side)

    def call() -> Tensor:
        with torch.inference_mode():
            return network.predict(frame, states)[0]

    return call


def _frame_seconds(build: Callable[[], ConvS5Video], history: int) -> float:
    return seconds(partial(_next_frame, build, history), repeats=10)


CLAIMS = (
    equal(
        "All frames at once give what they give one by one.",
        ours=partial(_both_ways, parallel=True),
        theirs=partial(_both_ways, parallel=False),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "With 1×1 convolutions it is a state-space model of each pixel.",
        ours=partial(_per_pixel, convolution=True),
        theirs=partial(_per_pixel, convolution=False),
        tolerance=1e-10,
        beyond="a ConvSSM with 1×1 kernels is an SSM of each pixel",
    ),
    faster(
        "A training step over 64 frames takes less time than that of a ConvLSTM of the same width.",
        paper="3 times",
        ours=step(partial(ConvS5Layer, 32, states=32), 1, 64, 32, 16, 16),
        theirs=step(partial(ConvLSTM, 32), 1, 64, 32, 16, 16),
        clause=3,
    ),
    grows(
        "The time of the next frame does not grow with the frames that have been fed one by one, from 8 to 512.",
        paper="constant",
        cost=partial(_frame_seconds, small),
        sizes=(8, 32, 128, 512),
        exponent=(-0.1, 0.1),
        rounds=5,
        clause=2,
    ),
    grows(
        "Measured in the same way, with attention in place of the recurrence it does.",
        paper="linear in the context",
        cost=partial(_frame_seconds, attention),
        sizes=(8, 32, 128, 512),
        exponent=(0.5, 1.5),
        rounds=5,
        clause=2,
    ),
    faster(
        "The next frame of a whole network takes less time than one layer of attention to 300 frames.",
        paper="400 times faster than a transformer",
        ours=partial(_next_frame, small, 300, side=32),
        theirs=partial(attention_step, 256, 300 * 256, 32),
        beyond="generation faster than a transformer",
    ),
    moving_digits.above_floors(
        small,
        "The next frame of two moving digits: less error than the last frame repeated, and than the mean picture.",
        steps=STEPS,
        paper="",
        clause=4,
    ),
    moving_digits.above_floors(
        small,
        "So have eight frames that it generates after twelve.",
        steps=STEPS,
        paper="",
        generated=True,
        beyond="generated frames follow the film",
    ),
    moving_digits.better(
        small,
        "The next frame has less error than a ConvLSTM's of the same width and depth after as many steps.",
        than=conv_lstm,
        steps=STEPS,
        paper="better than ConvLSTM on Moving-MNIST",
        beyond="below a ConvLSTM's error",
    ),
    moving_digits.better(
        small,
        "So have eight frames that it generates after twelve, beside the ConvLSTM's.",
        than=conv_lstm,
        steps=STEPS,
        paper="better than ConvLSTM on Moving-MNIST",
        generated=True,
        beyond="below a ConvLSTM's error, generated",
    ),
)
