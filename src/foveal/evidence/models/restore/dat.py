"""Evidence for DAT: spandrel's class with shared weights, a SwinIR of equal cost, one kind of attention alone."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.swinir import SwinIR
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.equal_minutes import Trial
from foveal.measure.cost import count_macs
from foveal.models.restore.dat import DAT, dat_light, dat_s
from foveal.record import bound, equal, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable

# Windows that fit into patches of 24 pixels, as the networks are trained on.
small = partial(DAT, dim=24, depths=(4,), num_heads=4, window=(4, 12), expansion=2, light=True)
spatial = partial(small, kinds=("spatial",))
channel = partial(small, kinds=("channel",))
swin = partial(SwinIR, dim=20, depths=(4,), num_heads=4, window=8, expansion=1.5)
TRIAL = Trial((small, swin, spatial, channel), 2, 0.6)

FULL: dict[str, Any] = {"embed_dim": 180, "depth": [6] * 6, "num_heads": [6] * 6, "upsampler": "pixelshuffle"}
# Name: builder, parameters at ×4, the paper's value, spandrel's arguments.
SIZES: dict[str, tuple[Callable[..., nn.Module], int, str, dict[str, Any]]] = {
    "DAT": (DAT, 14_802_051, "14.80 M", FULL | {"split_size": [8, 32], "expansion_factor": 4.0}),
    "DAT-S": (dat_s, 11_212_131, "11.21 M", FULL | {"split_size": [8, 16], "expansion_factor": 2.0}),
    "DAT-light": (
        dat_light,
        572_766,
        "573 K",
        {"embed_dim": 60, "depth": [18], "num_heads": [6], "split_size": [8, 32], "expansion_factor": 2.0}
        | {"resi_connection": "3conv", "upsampler": "pixelshuffledirect"},
    ),
}
NAMES = {"first_norm.": "before_RG.1.", "ffn.norm.": "ffn.sg.norm.", "ffn.conv.": "ffn.sg.conv."}
NAMES |= {"attn.pos.0.": "attn.attns.0.pos.", "attn.pos.1.": "attn.attns.1.pos."}
TAILS = {"tail.0.": "conv_before_upsample.0.", "tail.2.": "upsample.0.", "tail.4.": "upsample.2."}
TAILS |= {"tail.6.": "conv_last."}


def _against_spandrel(name: str, *, ours: bool) -> Tensor:
    """Output of one of the two networks with the same weights on the same picture; needs `pip install spandrel`."""
    try:
        from spandrel.architectures.DAT import DAT as Theirs  # noqa: N811
    except ImportError as error:
        raise ImportError("this claim compares with spandrel; install it: pip install spandrel") from error

    build, _, _, words = SIZES[name]
    torch.manual_seed(0)
    network, x = build(4).eval(), torch.rand(1, 3, 13, 19)
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    for key, statistic in network.named_buffers():
        if "running" in key:
            statistic.add_(0.1 * torch.rand_like(statistic))
    if not ours:
        names = NAMES | (TAILS if words["upsampler"] == "pixelshuffle" else {"tail.0.": "upsample.0."})
        state = network.state_dict()
        for here, there in names.items():
            state = {key.replace(here, there): value for key, value in state.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spandrel calls torch.meshgrid without `indexing`
            other = Theirs(upscale=4, img_size=64, **words).eval()
        left = other.load_state_dict(state, strict=False)
        lacking = [key for key in left.missing_keys if not key.endswith(("rpe_biases", "index")) and "mask" not in key]
        if lacking or left.unexpected_keys:
            raise ValueError(f"spandrel's names differ: lacking {lacking}, left over {left.unexpected_keys}")
        network = other
    with torch.inference_mode():
        return network(x)


def _macs(build: Callable[..., nn.Module]) -> float:
    """Multiply-adds a pixel, at sides that all windows divide."""
    return count_macs(build(2), (1, 3, 96, 96)) / 96**2


CLAIMS = (
    *(
        params(
            f"Parameters of {name} ×4.",
            paper=printed,
            model=partial(build, 4),
            expect=parameters,
            clause=1,
        )
        for name, (build, parameters, printed, _) in SIZES.items()
    ),
    *(
        equal(
            f"{name} ×4 equals spandrel's under shared weights.",
            ours=partial(_against_spandrel, name, ours=True),
            theirs=partial(_against_spandrel, name, ours=False),
            tolerance=1e-5,
            clause=1,
        )
        for name in SIZES
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is not below a SwinIR of equal multiply-adds.",
        than=swin,
        by=0.0,
        paper="above SwinIR",
        clause=2,
    ),
    bound(
        "The two take the same number of multiply-adds to 1 %.",
        paper="",
        value=lambda: _macs(small) / _macs(swin),
        at_least=0.99,
        at_most=1.01,
        clause=2,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is above its twin with spatial attention alone.",
        than=spatial,
        by=0.0,
        paper="alternation is better",
        clause=3,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is above its twin with channel attention alone.",
        than=channel,
        by=0.0,
        paper="alternation is better",
        clause=3,
    ),
    kept(
        "The small network has learnt in its minutes: it is above bicubic.",
        paper="",
        quality=partial(TRIAL.gain, small),
        at_least=0.0,
        data=TRIAL.data,
        needs=photos.NEEDS,
        beyond="what is compared has been learnt",
    ),
)
