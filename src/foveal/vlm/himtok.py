"""HiMTok: a mask as up to 32 discrete tokens, coarse to fine, that decode without the picture.

*Source*: T. Wang et al., "HiMTok: Learning Hierarchical Mask Tokens for Image Segmentation with Large Multimodal
Model", ICCV 2025 (arXiv:2503.13026), section 3; the tokenizer follows Q. Yu et al., "An Image is Worth 32 Tokens for
Reconstruction and Generation" (TiTok, arXiv:2406.07550). A mask M is cut into N patches, and K learnt queries stand
behind them. In the encoder patches attend to patches, query k to patches and queries 1 … k; of each query,

    z_k = linear(q_k) / |·|,   token_k = argmax_v z_k·e_v,   e_v: one of V unit vectors                       (B, K, D)
    c_k = z_k + stop(e_token − z_k)                                                  straight-through
    L_vq = |stop(z) − e|² + β·|z − stop(e)|²

    M̂_l = decoder(c_1 … c_l, 0 … 0)        K embedded codes, the tail zero, beside N mask tokens; no picture  (B, H, W)
    T_l = blur(M, σ_l) / max,   σ_l = (100 / (l + 2) − 2) · side / 256       what l tokens are asked for
    L   = bce(M̂_l, T_l) + ¼·dice(M̂_l, T_l) + L_vq,   l drawn from 1 … K                  hierarchical mask loss

so that every prefix is a mask, and a token refines what those before it say. A sequence model predicts the tokens one
after another; of its probabilities p, the same loss is taken through the frozen decoder with c_k = p_k·e. Boxes are
converted in both directions through masks: a filled box is a mask, and of a decoded mask the extent is a box.

    bits of a mask = l · log₂ V;   rival: `run_length_bits`

*Differs from the paper*: each patch and each code has an embedding matrix of its own (`Each`), by which a small network
learns in minutes; pixels by a linear layer in place of a convolutional decoder of VQGAN; no class tokens; no edge
weights in the loss; blurred targets for the tokenizer as well, for which the authors' code shrinks the mask to a side
of (l / K)^1.5 and takes squares. Codes are unit vectors wherever they are read (the authors' soft ones are not), and
those unused are moved to latents of the batch (`revive_`), which training within minutes needs. The paper's model
learns to convert boxes in its prompts; here boxes go through the tokenizer.
*Provenance*: written from the paper and from the behaviour of the authors' code (yayafengzi/LMM-HiMTok): who attends to
whom, tails zeroed before positions are added, σ, ¼, V = 1,024, D = 12, β = 0.01. On 50 random cases `quantize` chooses
the same tokens as that code and equals it to 2e-7, gradients too; `attends` is its mask, and `mask_loss` its loss; its
blur, cut at 3 σ, differs from `coarse` by up to 4e-3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

__all__ = [
    "Block", "Each", "MaskTokenizer", "attends", "box_mask", "coarse", "extent", "mask_loss", "prefix", "quantize",
    "run_length_bits",
]  # fmt: skip


def attends(patches: int, queries: int) -> Tensor:
    """Who attends to whom in the encoder.

    Args:
        patches: N.
        queries: K.

    Returns:
        (N + K, N + K), True where the row attends to the column: to all patches, and of queries to those up to itself.
    """
    total = patches + queries
    return (torch.arange(total) < patches) | torch.ones(total, total, dtype=torch.bool).tril()


def quantize(z: Tensor, codebook: Tensor, *, commitment: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest unit vectors of a codebook.

    Args:
        z: latents, (..., D), of any length.
        codebook: e, (V, D), of any length.
        commitment: β.

    Returns:
        Codes c, (..., D), with the gradient of z / |z|; tokens, (...), in [0, V); L_vq, a mean over numbers.
    """
    z, codes = F.normalize(z, dim=-1), F.normalize(codebook, dim=-1)
    tokens = (z @ codes.T).argmax(-1)
    chosen = codes[tokens]
    loss = F.mse_loss(chosen, z.detach()) + commitment * F.mse_loss(z, chosen.detach())
    return z + (chosen - z).detach(), tokens, loss


def prefix(x: Tensor, length: Tensor) -> Tensor:
    """Zero the tail of sequences.

    Args:
        x: (B, K, C).
        length: l, (B,), how many are kept of each.

    Returns:
        (B, K, C).
    """
    return x * (torch.arange(x.shape[1], device=x.device) < length[:, None])[..., None]


def coarse(mask: Tensor, length: Tensor) -> Tensor:
    """T_l: what a prefix is asked to show.

    Args:
        mask: M, (B, H, W), values in [0, 1].
        length: l, (B,), at least 1.

    Returns:
        (B, H, W): M blurred by a Gaussian of σ_l, 0 beyond the border, over its own maximum. From 48 tokens on, M.
    """
    sigma = ((100 / (length + 2) - 2) * max(mask.shape[1:]) / 256).clamp(min=1e-3)[:, None, None]
    weights = []
    for count in mask.shape[1:]:
        at = torch.arange(count, device=mask.device)
        weights.append(torch.exp((-((at[:, None] - at) ** 2) / (2 * sigma**2)).to(mask)))  # (B, n, n)
    blurred = weights[0] @ mask @ weights[1]
    return blurred / blurred.amax((1, 2), keepdim=True).clamp(min=1e-6)


def mask_loss(logits: Tensor, mask: Tensor, length: Tensor, *, dice: float = 0.25) -> Tensor:
    """The hierarchical mask loss of prefixes.

    Args:
        logits: of M̂_l, (B, H, W).
        mask: M, (B, H, W), values in [0, 1].
        length: l, (B,).
        dice: weight of the Dice loss.

    Returns:
        Scalar: cross-entropy, a mean over pixels, and Dice over the batch.
    """
    target, shown = coarse(mask, length), logits.sigmoid()
    overlap = (2 * (shown * target).sum() + 1e-6) / (shown.sum() + target.sum() + 1e-6)
    return F.binary_cross_entropy_with_logits(logits, target) + dice * (1 - overlap)


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Filled boxes.

    Args:
        boxes: (B, 4): top, left, bottom and right in pixels; bottom and right are exclusive.
        size: H and W.

    Returns:
        (B, H, W), 0 or 1.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(n, device=boxes.device) for n in size)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None]).float()


def extent(mask: Tensor, *, share: float = 0.0) -> Tensor:
    """The box around a mask.

    Args:
        mask: (B, H, W), bool.
        share: rows and columns with more than this share of the fullest one's pixels count; 0.5 suits filled boxes.

    Returns:
        (B, 4): top, left, bottom, right; zeros for an empty mask.
    """
    found = []
    for pixels in (mask.sum(2), mask.sum(1)):
        line = (pixels > share * pixels.amax(1, keepdim=True)).int()
        found += [line.argmax(1), line.shape[1] - line.flip(1).argmax(1)]
    top, bottom, left, right = found
    return torch.stack((top, left, bottom, right), 1) * mask.flatten(1).any(1, keepdim=True)


def run_length_bits(mask: Tensor) -> Tensor:
    """Bits of run-length coding: pixels in raster order, or by columns where that is shorter.

    One bit says which order, one the first pixel's value; each run of r equal pixels then takes Elias' γ code,
    2·⌊log₂ r⌋ + 1 bits.

    Args:
        mask: (B, H, W), bool.

    Returns:
        (B,), integers.
    """
    found = []
    for scanned in (mask.flatten(1), mask.transpose(1, 2).flatten(1)):
        bits = []
        for row in scanned:
            ends = torch.cat((row[1:] != row[:-1], torch.ones_like(row[:1]))).nonzero()[:, 0]
            runs = ends.diff(prepend=ends.new_tensor([-1]))
            bits.append(int((2 * (torch.frexp(runs.double()).exponent - 1) + 1).sum()))
        found.append(bits)
    return 2 + torch.tensor(found).amin(0)


class Each(nn.Module):
    """A linear layer for each of N places, (B, N, C) to (B, N, C')."""

    def __init__(self, places: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(places, in_channels, out_channels) / in_channels**0.5)
        self.bias = nn.Parameter(torch.zeros(places, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(0, 1) @ self.weight).transpose(0, 1) + self.bias


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm; (B, N, C) to the same."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.norm1, self.norm2 = num_heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        nn.init.normal_(self.qkv.weight[: 2 * dim], std=dim**-0.5)  # uneven attention from the start: it learns sooner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # (3, B, heads, N, C / heads)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MaskTokenizer(nn.Module):
    """Masks to tokens and back.

    Args:
        img_size: H = W, a multiple of `patch_size`.
        patch_size: side of a patch.
        queries: K, the most tokens of a mask.
        codebook: V, the number of codes.
        code: D, channels of a code.
        dim: channels within encoder and decoder.
        depth: blocks of each.
        num_heads: attention heads.

    Raises:
        VlmError: sides or heads that do not divide.
    """

    allowed: Tensor

    def __init__(
        self, img_size: int = 256, *, patch_size: int = 16, queries: int = 32, codebook: int = 1024, code: int = 12,
        dim: int = 1024, depth: int = 24, num_heads: int = 16,
    ) -> None:  # fmt: skip
        super().__init__()
        if img_size % patch_size or dim % num_heads:
            raise VlmError(
                f"img_size must be a multiple of patch_size and dim one of num_heads, got {img_size} and {patch_size}, "
                f"{dim} and {num_heads}; 256, 16, 1024 and 16 are the paper's"
            )
        self.patch_size, self.grid, self.queries = patch_size, img_size // patch_size, queries
        patches, pixels = self.grid**2, patch_size**2

        def drawn(count: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(count, dim) * 0.5)

        self.embed, self.project = Each(patches, pixels, dim), nn.Linear(dim, code)
        self.place, self.query = drawn(patches), drawn(queries)
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook, code), dim=1))
        self.unfold, self.pixels = Each(queries, code, dim), nn.Linear(dim, pixels)
        self.blank, self.order = drawn(patches), drawn(queries)  # mask tokens and places of codes
        self.encoder, self.decoder = (nn.ModuleList(Block(dim, num_heads) for _ in range(depth)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.register_buffer("allowed", attends(patches, queries), persistent=False)

    def latents(self, mask: Tensor) -> Tensor:
        """Masks, (B, H, W) with values in [0, 1], to z, (B, K, D), not yet of unit length."""
        cut = mask.unflatten(2, (self.grid, -1)).unflatten(1, (self.grid, -1)).transpose(2, 3)  # (B, g, g, p, p)
        x = self.embed(2 * cut.flatten(3).flatten(1, 2) - 1) + self.place
        x = self.norms[0](torch.cat((x, self.query.expand(len(x), -1, -1)), 1))
        for block in self.encoder:
            x = block(x, self.allowed)
        return self.project(self.norms[1](x[:, -self.queries :]))  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, mask: Tensor) -> Tensor:
        """Tokens of masks.

        Args:
            mask: (B, H, W), values in [0, 1].

        Returns:
            (B, K), int64 in [0, V).

        Raises:
            VlmError: masks of another size.
        """
        side = self.grid * self.patch_size
        if mask.ndim != 3 or tuple(mask.shape[1:]) != (side, side):
            raise VlmError(f"masks must be (B, {side}, {side}), got {tuple(mask.shape)}; resize or pad them")
        return quantize(self.latents(mask), self.codebook)[1]

    def draw(self, codes: Tensor, length: Tensor | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: c, (B, K, D).
            length: l, (B,), how many are read of each; None for all.

        Returns:
            Logits of M̂, (B, H, W).
        """
        x = self.unfold(codes)
        x = (x if length is None else prefix(x, length)) + self.order
        x = self.norms[2](torch.cat((self.blank.expand(len(x), -1, -1), x), 1))
        for block in self.decoder:
            x = block(x)
        made = self.pixels(self.norms[3](x[:, : -self.queries]))
        # (B, g, g, p, p) to (B, H, W)
        made = made.unflatten(2, (self.patch_size, -1)).unflatten(1, (self.grid, -1))
        return made.transpose(2, 3).flatten(3).flatten(1, 2)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens, without the picture.

        Args:
            tokens: (B, l), any prefix of a mask's tokens, in [0, V).

        Returns:
            Logits of M̂_l, (B, H, W); the mask is where they are above 0.

        Raises:
            VlmError: no token or more than K.
        """
        count = tokens.shape[1]
        if not 1 <= count <= self.queries:
            raise VlmError(f"a mask has 1 to {self.queries} tokens, got {count}; cut the sequence or build with more")
        codes = F.pad(F.normalize(self.codebook, dim=1)[tokens], (0, 0, 0, self.queries - count))
        return self.draw(codes, torch.full((len(tokens),), count, device=tokens.device))

    def soft(self, probabilities: Tensor) -> Tensor:
        """Codes p·e, (B, K, D), of probabilities of tokens, (B, K, V), for the mask loss of what predicts them."""
        return probabilities @ F.normalize(self.codebook, dim=1)

    def forward(self, mask: Tensor, length: Tensor, *, commitment: float = 0.01, dice: float = 0.25) -> Tensor:
        """L, for training.

        Args:
            mask: M, (B, H, W), values in [0, 1].
            length: l, (B,), drawn from 1 … K.
            commitment: β.
            dice: weight of the Dice loss.

        Returns:
            Scalar.
        """
        codes, _, loss = quantize(self.latents(mask), self.codebook, commitment=commitment)
        return mask_loss(self.draw(codes, length), mask, length, dice=dice) + loss

    @torch.no_grad()
    def revive_(self, mask: Tensor) -> int:
        """Move codes that no token of a batch uses to latents of it, drawn at random.

        Args:
            mask: masks, (B, H, W).

        Returns:
            How many were moved.
        """
        z = F.normalize(self.latents(mask), dim=-1)
        used = quantize(z, self.codebook)[1].flatten()
        dead = torch.ones(len(self.codebook), dtype=torch.bool, device=z.device).index_fill(0, used, False)
        at = torch.randint(z.shape[0] * z.shape[1], (int(dead.sum()),), device=z.device)
        self.codebook[dead] = z.flatten(0, 1)[at]
        return len(at)


def _case(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"z": torch.randn(2, 3, 4, generator=generator), "codebook": torch.randn(7, 4, generator=generator)}


def _quantized(z: Tensor, codebook: Tensor) -> Tensor:
    codes, _, loss = quantize(z, codebook)
    return codes + loss


def _plainly(z: Tensor, codebook: Tensor) -> Tensor:
    """`_quantized`, latent after latent."""
    vectors = [e / e.norm() for e in codebook.unbind()]
    codes, loss = [], z.new_zeros(())
    for latent in z.flatten(0, 1).unbind():
        unit = latent / latent.norm()
        near = min(vectors, key=lambda e: float((unit - e).detach().norm()))
        codes.append(unit + (near - unit).detach())
        loss = loss + (near - unit.detach()).square().sum() + 0.01 * (unit - near.detach()).square().sum()
    return torch.stack(codes).view_as(z) + loss / z.numel()


METHOD = Method(
    id=330,
    name="HiMTok",
    kind="operator",
    summary="A mask as up to 32 discrete tokens, coarse to fine, that decode to a mask without the picture.",
    paper=Paper(
        "HiMTok: Learning Hierarchical Mask Tokens for Image Segmentation with Large Multimodal Model",
        "T. Wang et al.",
        2025,
        "arXiv:2503.13026",
    ),
    cases={"quantized": Operator(_quantized, _plainly, _case)},
)
