"""AdaTape: a transformer that reads more tokens from a bank, one step after the other, until it has read enough.

*Source*: F. Xue et al., "Adaptive Computation with Elastic Input Sequence", ICML 2023 (arXiv:2301.13195), section 3,
Adaptive Tape Reading. The bank z is made of the input itself, finer patches or single symbols, or learned. A step reads
K tokens that were not read before, merges them into one tape token and moves the query towards it:

    w = softmax of the K largest q·key(z)/√D,  tape token = Σ w z,  q ← (q + key(tape token)) / 2
    h ← h + max w;  reading ends when h ≥ τ, after at most S = K τ steps
    ponder = Σ over steps (1 − Σ w²)                              added to the task's loss with a small weight

The sharper the choices, the fewer the steps. The tape is appended to the tokens; in attention all see all, and an MLP
of its own works on the tape.

Shapes: B batch, N tokens, M tokens of the bank, S tape tokens at most, C channels, D channels of a key, the first of C.

*Differs from the paper*: tokens of the bank are not read twice (the authors' code allows it when the bank runs out),
and reading stops as soon as every input of the batch has ended. A learned bank is a parameter given as `bank`. Symbols
of a sequence have faint fixed positions in its bank: between tokens that are alike no loss can make the choice sharper.
*Provenance*: written from the paper; merging of K tokens, the step that moves the query, the ponder loss and the
network for parity, whose input is one token, were looked up in the authors' code. There the weights are looked up
without the batch's axis; here each input has its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from foveal.nn.gather import take
from foveal.nn.isotropic import PatchEmbed
from foveal.record import Method, Paper

__all__ = ["AdaTapeEncoder", "AdaTapeSequence", "AdaTapeViT", "Read", "TapeBlock", "adatape_small", "read_tape"]


class Read(NamedTuple):
    """What was read from a bank.

    Args:
        tape: tape tokens, (B, S, C); S is the largest number of steps in the batch.
        there: whether an input took that step, (B, S), 0 or 1.
        ponder: loss of each input, (B,).
    """

    tape: Tensor
    there: Tensor
    ponder: Tensor


def read_tape(query: Tensor, bank: Tensor, *, key_dim: int, steps: int, merge: int) -> Read:
    """Read from a bank until the mass of the choices reaches steps / merge.

    Args:
        query: q, (B, D).
        bank: z, (B, M, C), M at least `steps` · `merge`.
        key_dim: D.
        steps: S.
        merge: K, tokens that become one.

    Returns:
        What was read.

    Raises:
        ValueError: a bank with fewer tokens than all steps take.
    """
    if bank.shape[1] < steps * merge:
        raise ValueError(
            f"{steps} steps of {merge} tokens need a bank of {steps * merge}, got {bank.shape[1]}; take fewer steps"
        )
    keys, threshold = bank[..., :key_dim], steps / merge
    mass, ponder = query.new_zeros(len(query)), query.new_zeros(len(query))
    unread = torch.ones(bank.shape[:2], dtype=torch.bool, device=bank.device)
    tape: list[Tensor] = []
    there: list[Tensor] = []
    for _ in range(steps):
        # sums of ten times 0.1 fall short of 1
        going = (mass < threshold - 1e-5).to(bank)
        if tape and not going.any():
            break
        score = (keys @ query[..., None])[..., 0]
        index = score.masked_fill(~unread, -torch.inf).topk(merge, 1).indices
        weight = (score.gather(1, index) / key_dim**0.5).softmax(1)
        token = (weight[..., None] * take(bank, index)).sum(1)
        ponder = ponder + going * (1 - weight.square().sum(1))
        mass = mass + going * weight.detach().amax(1)
        unread = unread.scatter(1, index, False)
        query = (query + token[:, :key_dim]) / 2
        tape.append(token)
        there.append(going)
    return Read(torch.stack(tape, 1), torch.stack(there, 1), ponder)


class TapeBlock(nn.Module):
    """A transformer's block with an MLP for tokens and one for the tape, (B, N + S, C) to the same.

    Args:
        dim: C.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLPs over C.
        tape: whether there is an MLP for the tape.
        drop_path: probability of dropping each branch while training.
    """

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, tape: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.tape_mlp = Mlp(dim, int(mlp_ratio * dim)) if tape else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, own: int | None = None, there: Tensor | None = None) -> Tensor:
        # (B, N, 3·C) to three of (B, heads, N, C / heads)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if there is None else there.log()[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.drop_path(self.proj(y))
        y = self.norm2(x)
        if self.tape_mlp is None or own is None or own == x.shape[1]:
            return x + self.drop_path(self.mlp(y))
        return x + self.drop_path(torch.cat((self.mlp(y[:, :own]), self.tape_mlp(y[:, own:])), 1))


class AdaTapeEncoder(nn.Module):
    """Blocks that read from a bank between two of them, (B, N, C) and (B, M, C) to (B, C), the mean of what is there.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: attention heads.
        steps: S.
        merge: K.
        after: number of blocks before the reading, at least 0.
        key_dim: D.
        mlp_ratio: hidden channels of the MLPs over C.
        drop_path: of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: a reading behind the last block, or numbers of steps and of merged tokens below 1.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        steps: int = 10,
        merge: int = 5,
        after: int = 1,
        key_dim: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= after < depth:
            raise ValueError(f"after must be in 0…{depth - 1} for {depth} blocks, got {after}")
        if steps < 1 or merge < 1:
            raise ValueError(f"steps and merge must be at least 1, got {steps} and {merge}")
        self.steps, self.merge, self.after, self.key_dim = steps, merge, after, key_dim
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TapeBlock(dim, num_heads, mlp_ratio=mlp_ratio, tape=i >= after, drop_path=rates[i]) for i in range(depth)
        )
        self.norm_bank, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, bank: Tensor) -> tuple[Tensor, Read]:
        for block in self.blocks[: self.after]:
            x = block(x)
        query = self.norm_bank(x.mean(1))[:, : self.key_dim]
        read = read_tape(query, self.norm_bank(bank), key_dim=self.key_dim, steps=self.steps, merge=self.merge)
        own = x.shape[1]
        there = torch.cat((read.there.new_ones(len(x), own), read.there), 1)
        x = torch.cat((x, read.tape), 1)
        for block in self.blocks[self.after :]:
            x = block(x, own, there)
        mean = (self.norm(x) * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return mean, read


class AdaTapeSequence(nn.Module):
    """Classifier of sequences for parity, (B, L, in_channels) to (B, num_classes): one token, and a bank of L.

    Args:
        length: L, at least `steps` · `merge`.
        in_channels: features of a symbol.
        num_classes: of the head.
        dim: C.
        depth: number of blocks.
        num_heads: attention heads.
        steps: S.
        merge: K.
        positions: standard deviation of the bank's positions, which are drawn once and not learned.
    """

    pos_embed: Tensor

    def __init__(
        self,
        length: int,
        in_channels: int,
        *,
        num_classes: int = 2,
        dim: int = 32,
        depth: int = 2,
        num_heads: int = 2,
        steps: int = 8,
        merge: int = 2,
        positions: float = 0.05,
    ) -> None:
        super().__init__()
        self.embed, self.bank = nn.Linear(length * in_channels, dim), nn.Linear(in_channels, dim)
        self.encoder = AdaTapeEncoder(dim, depth, num_heads, steps=steps, merge=merge, key_dim=dim // 2)
        self.head = nn.Linear(dim, num_classes)
        self.register_buffer("pos_embed", positions * torch.randn(1, length, dim))

    def read(self, x: Tensor) -> tuple[Tensor, Read]:
        """Classify, and tell what was read.

        Args:
            x: sequences, (B, L, in_channels).

        Returns:
            Logits, (B, num_classes), and what was read.
        """
        mean, read = self.encoder(self.embed(x.flatten(1))[:, None], self.bank(x) + self.pos_embed)
        return self.head(mean), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)[0]


class AdaTapeViT(nn.Module):
    """Image classifier that reads finer patches, (B, in_channels, img_size, img_size) to (B, num_classes).

    Args:
        img_size: side of the pictures.
        patch_size: side of a patch.
        bank_patch_size: side of the finer patches in the bank.
        dim: C.
        depth: number of blocks.
        num_heads: attention heads; a key has the channels of one head.
        steps: S.
        merge: K.
        in_channels: of the picture.
        num_classes: of the head.
        drop_path: of the last block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        bank_patch_size: int = 8,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        steps: int = 10,
        merge: int = 5,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed = PatchEmbed(dim, patch_size, in_channels=in_channels)
        self.bank = PatchEmbed(dim, bank_patch_size, in_channels=in_channels)
        self.pos_embed, self.bank_pos_embed = (
            nn.Parameter(torch.zeros(1, (-(-img_size // side)) ** 2, dim)) for side in (patch_size, bank_patch_size)
        )
        self.bank_proj = nn.Linear(dim, dim)
        words: dict[str, Any] = {"steps": steps, "merge": merge, "key_dim": dim // num_heads, "drop_path": drop_path}
        self.encoder = AdaTapeEncoder(dim, depth, num_heads, **words)
        self.head = nn.Linear(dim, num_classes)
        for positions in (self.pos_embed, self.bank_pos_embed):
            trunc_normal_(positions, std=0.02)

    def read(self, x: Tensor) -> tuple[Tensor, Read]:
        """Classify, and tell what was read.

        Args:
            x: pictures, (B, in_channels, img_size, img_size).

        Returns:
            Logits, (B, num_classes), and what was read.
        """
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        bank = self.bank_proj(self.bank(x).flatten(2).transpose(1, 2) + self.bank_pos_embed)
        mean, read = self.encoder(tokens, bank)
        return self.head(mean), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)[0]


adatape_small = AdaTapeViT  # AdaTape-S/16 with an input-driven bank

METHOD = Method(
    id=46,
    name="AdaTape",
    kind="model",
    summary="A transformer reads as many more tokens from a bank as it needs and appends them to its input.",
    paper=Paper("Adaptive Computation with Elastic Input Sequence", "F. Xue et al.", 2023, "arXiv:2301.13195"),
    models={"adatape_small": adatape_small},
    cases={
        "adatape_small": {
            "img_size": 16,
            "patch_size": 4,
            "bank_patch_size": 2,
            "dim": 8,
            "depth": 2,
            "num_heads": 2,
            "steps": 4,
            "merge": 2,
            "num_classes": 3,
        }
    },
)
