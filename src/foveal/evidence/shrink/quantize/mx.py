"""Evidence for MX: torchao's values to the bit, exact sizes, direct casts and training of a small ResNet."""

from __future__ import annotations

import base64
import copy
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet8
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, kept
from foveal.shrink.quantize.fake import quantized_
from foveal.shrink.quantize.mx import FORMATS, MXQuantizer, direct_cast_, mx, mx_bytes
from foveal.shrink.quantize.mx_training import train_in_mx_
from foveal.shrink.quantize.packed import load_packed_, save_packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

STEPS, SEEDS = 800, 5
DATA = f"ResNet-8 on CIFAR-10 at 16×16, {STEPS} steps of 64; 10,000 test pictures"
# What torchao 0.18.0 (MXTensor, emulated, scaling mode floor) makes of `cases()`: upper halves of float32, compressed.
TORCHAO = {
    "mxfp8_e5m2": (
        "c-p0s{c+nc48<`DN3bo)-zMP>62p`9jlvPyMoOEcA#q)#=q81wM%TX`{7xsH_#jYEkBC4YxS&u`9tld0Rjs+Aa;1vml1PaYQcjvI5fcZVN*L"
        "_#h=}T%;3{$5q|{kGb%eQV>U_sf@J59TN-kQgkWURh`-b=_Ch~~R*v$KcdqJY)Ul?(s6OMGmfezTy9y{7$OIvJcgEg(uQHPdVG}K^4D=cY=1"
        "uZmj)yPFp{H90#sRw@5J-_IVpLNSWbi?0u%}?6#pe^^>@T0Eyn=bjQF7QP^e+-%n|E=#SxwGFL^gjy5FJ)so(>a`ZM9%m}9?=;ap-)aredw$"
        "qcPDpnm+}w>Zo-rFd0=1X-dcCRpBzNz4h|S-kQRgVp->XfU#OlU&zz^k^XGYuo+nSB-O?C6J+I-m7cH{iL$#8t=d;>Hf78`Og#Y9Rkt|~2Y9"
        "^Ki58;Z77@3+s@wl46cW)iRVELl*7b0yi;Q"
    ),
    "mxfp8_e4m3": (
        "c-p0s%aPkK5JV>ggn$rGC9(7e29AIcte^~-!A=Mafg#{PtUv1orW}DX@Hhj7;E}wxPu9W0D;`L851T*(0Ko$n@xY0DMs{r3Ft9XkQ=^6r8da"
        "5e2pA|#frA7<gBBek_Ly)$o#Dx|YOJb~>PA&&)t*&-QT;E6eRtuz^EaB{4JuZuQ{^fZnrXH<{d(V08#D*CQS)5Mn(WHC$sexs?{f+Fpa4Pt("
        "9;19w1++IU`Jcn(grrPhBd8V1$Pz)Z0xb}0pEC!UwMbGyu~lP!Oy(LPrRa!I^m!D&(DwXHwit%Lo5BKUw2T?l#sqL3PLo|Mi(*mF~uR0GREm"
        "fj(p=B<;Eq#2Uwcfb+Rypm${=3OD?v!g?$<3sbDcB&$1jlGw05!X6VifEJL}>!;(sxZ8ahJ>}`YEYwM=Q+P+@TRQse26urxSYU8WZcV{o&g;"
        "Dz@b!^(^Cdd5UoFt`$KgOpa<<yHki6oiQ_~cG>Oaj89Pg0*Gk(d*!!w5+}=JXR0KQf{"
    ),
    "mxfp6_e3m2": (
        "c-p0s(RIQw3`I4Hc7S{pY^8&Mm;{aDA>#f}Y@IGrb(21ll70iaC&xa~lchM1h>Tu%%+1whhMhok@1<LpPTd+LiLzwNC3}ucLc+3yiV4n0mK+"
        "*}N}*enzN(iBUaOYMJDA`~O`5gRyhS5)W%RzGm|~&K_)4tYJ3NbJ%J{-$d)nKMcJ@XOg=guWr1@U1zLQU!aCzkZ{rnpLlh~PF3VpI3H;6xKV"
        "qY#HG}6eU%;;!;lo?-%8F~j>ns|r}Ro|Au2C1cTl?{LBRH|TKrr6p*lOyNY`9`W$s=BqR6F15V|8a+l;5oPi{)1l=`~(Na&5a3uzVI!VA_-R"
        "R(MpFudmR0nPNAyuQx2*{HTV>vQPd86vZDrt2j0N0p@!_Og2SR5U4H?BsTL~"
    ),
    "mxfp6_e2m3": (
        "c-p0s!ExL$3`J1_OJE6_iF8~NN(HLGi|s%i7$v9#mcWCUTL_FR*bahpuq7ChJ(HVf;^iA1M7>XeBmjWniHCJn(nV1RjT#ixM5PD|3J7;s5@g"
        "JrOV(@|Fkr+15f>y}(bq_v)Sc)SxwpAl-Mzd0aQ`C_KU4Ubq%-Y#=HJk<b1z-Hb&w!Y2LJmaB&*lKvUxoR)hj!=i=8~2WBspr<gefi*>{-u0"
        "vGtk(2Sx9yIy=Bm;XP1eSMC9mGCP(HP-Lvkq_P!VLpg6p3uxE+gwiStS9%`P98J-gc0^(f-y85>%<eb+G67$@fYu<VGFJ7Hf|H_bsF4R-Nm*"
        "xXgqS`J@$|()f5H#;$2rnz55owQ|~9gU-P$`iU1G(?Vc<RdGr3VzKM6U*j4|8n-LNI<(HKzEf#NPWQF);xbc+?OwDI#AtSbMI}*Xz%C*uv2;"
        "Lwb"
    ),
    "mxfp4_e2m1": (
        "c-p0sQF4PY3`F-(;TNmDNX$vHhr;=^HN8m5O}aA7B&7W*=#9t7T49410C8f_1M6VJ8#`!S10;4l!B*Cwh%!f{z&2ed{YCxS^B&rPsO)$}Td@"
        "vz_@C_e_&?OSb^Z|t!;>{1S@niP|KD%tc%FneoC-VH&o6vD;V*m#K390*Y=hbh1|K+B@nS{!opXOGoS}7Ps!1)a=2*WlYBlc9M{B4Su4~~ui"
        "?!;T4|P9svPCVFiSm|LIV#C(nctW&S+<A1A$zt(`GbpR?KJVKd~qQ~#>A-h!G%}PKlh9Hjs"
    ),
}


def cases() -> Tensor:
    """Blocks that formats could get wrong, one a row, and random ones.

    Returns:
        Values, (14, 32): zeros of both signs; ties of quarters, eighths and sixteenths; values just below 2; values
        that become subnormal; a NaN; an infinity; the largest float32; a power of two at the top; random values.
    """
    n = np.arange(32, dtype=np.float32)
    rows = [np.where(n % 2 == 0, 0.0, -0.0), n / 4 - 4, n / 8, -n / 16, 2 - n / 256, 2.0**-n, (-1) ** n * 1.5 * 2.0**-n]
    special = np.stack([n] * 4)
    special[0, 5], special[1, 5], special[2, 5], special[3, 5] = np.nan, np.inf, np.finfo(np.float32).max, -64.0
    rng = np.random.default_rng(0)
    random = rng.standard_normal((3, 32)) * np.array([[1e-6], [1.0], [1e20]])
    return torch.from_numpy(np.concatenate([np.stack(rows), special, random]).astype(np.float32))


def _bits(x: Tensor) -> Tensor:
    """Bits of float32 values as numbers, all NaN alike."""
    return torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32)).double()


def _torchao(name: str) -> Tensor:
    upper = np.frombuffer(zlib.decompress(base64.b85decode(TORCHAO[name])), "<u2")
    return _bits(torch.from_numpy((upper.astype(np.uint32) << 16).view(np.float32).reshape(-1, 32).copy()))


def _equality(name: str) -> Claim:
    return equal(
        f"{name.upper()} equals torchao's MXTensor to the bit: zeros, ties, overflow, subnormals, NaN, infinity.",
        ours=lambda: _bits(mx(cases(), name)),
        theirs=partial(_torchao, name),
        tolerance=0.0,
        clause=1,
    )


def _bits_a_value(name: str) -> float:
    """Bits per value of a packed file of one 256×256 layer, read back."""
    layer = nn.Sequential(nn.Linear(256, 256, bias=False))
    quantized_(layer, weight=lambda _: MXQuantizer(name), choose=lambda *_: True)
    with tempfile.TemporaryDirectory() as folder:
        written = save_packed(layer, Path(folder) / "layer.safetensors")
        load_packed_(copy.deepcopy(layer), Path(folder) / "layer.safetensors")
    assert written == mx_bytes((256, 256), name)
    return 8 * written / 256**2


def _size(name: str) -> Claim:
    bits = FORMATS[name].bits + 0.25
    return bound(
        f"A packed layer in {name.upper()} takes {bits} bits a value.",
        paper=f"{bits} bits",
        value=partial(_bits_a_value, name),
        at_least=bits,
        at_most=bits,
        unit="bits",
        clause=2,
    )


@cached(maxsize=2)
def _pictures(part: str) -> tuple[Tensor, Tensor]:
    x, labels = cifar10.pictures(part)
    return F.avg_pool2d(x, 2), labels


def _train(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    return cifar10.train_classifier(build, steps=STEPS, seed=seed, data=_pictures("train"))


@cached(maxsize=SEEDS)
def _float(seed: int) -> nn.Module:
    return trained_once(
        resnet8,
        lambda: _train(resnet8, seed),
        modules=[cifar10.__name__, resnet8.func.__module__],
        key=f"resnet8 16×16 steps {STEPS} seed {seed}",
    )


def _cast(seed: int, *, name: str) -> float:
    """Points that a direct cast gains."""
    cast, whole = direct_cast_(copy.deepcopy(_float(seed)), name), _float(seed)
    return cifar10.accuracy(cast, _pictures("test")) - cifar10.accuracy(whole, _pictures("test"))


def _in_mx() -> nn.Module:
    return train_in_mx_(resnet8(), "mxfp6_e3m2")


def _trained(seed: int) -> float:
    """Points that training in MXFP6 gains over training in FP32, with the same batches and settings."""
    test = _pictures("test")
    return cifar10.accuracy(_train(_in_mx, seed), test) - cifar10.accuracy(_float(seed), test)


def _casting(name: str, paper: str) -> Claim:
    return kept(
        f"A trained ResNet-8 cast to {name.upper()}, weights and activations, loses at most 0.5 points.",
        paper=paper,
        quality=partial(_cast, name=name),
        at_least=-0.5,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    )


CLAIMS = (
    *(_equality(name) for name in TORCHAO),
    *(_size(name) for name in FORMATS),
    _casting("mxint8", "a drop-in replacement"),
    _casting("mxfp8_e4m3", "a drop-in replacement"),
    _casting("mxfp8_e5m2", "a drop-in replacement"),
    kept(
        "ResNet-8 trained with weights, activations and gradients in MXFP6 is within 0.5 points of FP32.",
        paper="minimal loss, no change of recipe",
        quality=_trained,
        at_least=-0.5,
        unit="points",
        seeds=SEEDS,
        data=DATA,
        needs=cifar10.NEEDS,
        clause=4,
    ),
)
