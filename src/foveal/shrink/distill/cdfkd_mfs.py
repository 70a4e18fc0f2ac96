"""CDFKD-MFS: several teachers teach one student with a head for each, on pictures that a generator makes up.

*Source*: Z. Hao et al., "CDFKD-MFS: Collaborative Data-free Knowledge Distillation via Multi-level Feature Sharing",
IEEE Transactions on Multimedia, 2022 (arXiv:2205.11845): the multi-header student, adversarial and ensemble losses.

    x = G(z),  z ~ N(0, 1)                                             no training picture is seen
    student:   mean_k |s_k − t_k|₁ + 0.2 mean_k |f_k − g_k|₁ + 5 |mean_k s_k − mean_k t_k|₁      five steps
    generator: −mean_k |s_k − t_k|₁ + 0.1 mean_k Σ_l (‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂)             then one
    head k: a_1 = E_k1(u_1),  a_l = E_kl(u_l ‖ a_{l−1})                 u_l: output of the shared stage l

s_k and t_k are logits of head and teacher, f_k and g_k their pooled last features, μ_l and σ²_l the statistics of the
made-up pictures at a BatchNorm of a teacher, μ̂_l and σ̂²_l those it learnt; the first layer counts five times. E_kl are
separable convolutions. Shapes: B pictures, K teachers, D features.

*Differs from the paper*: the heads are averaged; their weighting by real samples, where there are some, is left out.
*Provenance*: written from the paper; layer sizes and weights of the losses as in the authors' code.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Generator", "MultiHead", "distil_without_data", "generator_loss", "observed", "statistics", "student_loss"]


def student_loss(
    logits: Tensor,
    taught: Tensor,
    features: Tensor,
    taught_features: Tensor,
    *,
    feature_weight: float = 0.2,
    ensemble_weight: float = 5.0,
) -> Tensor:
    """What the student minimises.

    Args:
        logits: the heads' logits, (K, B, classes).
        taught: the teachers' logits, (K, B, classes).
        features: the heads' features, (K, B, D).
        taught_features: the teachers' features, (K, B, D).
        feature_weight: weight of the features.
        ensemble_weight: weight of the mean over the heads.

    Returns:
        Scalar.
    """
    each = F.l1_loss(logits, taught.detach())
    near = (features - taught_features.detach()).abs().sum(2).mean()
    together = F.l1_loss(logits.mean(0), taught.detach().mean(0))
    return each + feature_weight * near + ensemble_weight * together


def statistics(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Distance between the statistics of a batch and those a BatchNorm has learnt.

    Args:
        x: input of the layer, (B, C, H, W).
        norm: layer.

    Returns:
        Scalar.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()


def generator_loss(logits: Tensor, taught: Tensor, distances: Tensor, *, statistics_weight: float = 0.1) -> Tensor:
    """What the generator minimises: pictures on which heads and teachers disagree, with the teachers' statistics.

    Args:
        logits: the heads' logits, (K, B, classes).
        taught: the teachers' logits, (K, B, classes).
        distances: distance of the statistics at each BatchNorm of each teacher, (K, layers).
        statistics_weight: weight of the statistics.

    Returns:
        Scalar.
    """
    weights = torch.ones_like(distances[0])
    weights[0] = 5
    return statistics_weight * (distances * weights).sum(1).mean() - F.l1_loss(logits, taught)


class Generator(nn.Module):
    """Noise to pictures of zero mean and unit variance, (B, latent) to (B, channels, S, S).

    Args:
        img_size: S, a multiple of 4.
        channels: number of channels of a picture.
        latent: length of the noise.
        dim: number of channels inside.

    Raises:
        ValueError: a side that is not a multiple of 4.
    """

    def __init__(self, img_size: int = 32, *, channels: int = 3, latent: int = 256, dim: int = 128) -> None:
        super().__init__()
        if img_size < 4 or img_size % 4:
            raise ValueError(f"img_size must be a multiple of 4, got {img_size}; the generator doubles a side twice")
        self.latent, side = latent, img_size // 4
        self.start = nn.Sequential(
            nn.Linear(latent, dim * side**2), nn.Unflatten(1, (dim, side, side)), nn.BatchNorm2d(dim)
        )
        self.body = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim, 0.8),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(dim, dim // 2, 3, padding=1),
            nn.BatchNorm2d(dim // 2, 0.8),
            nn.LeakyReLU(0.2),
        )
        self.end = nn.Sequential(
            nn.Conv2d(dim // 2, channels, 3, padding=1), nn.Tanh(), nn.BatchNorm2d(channels, affine=False)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.end(self.body(self.start(z)))


def _encoder(dim: int, out: int, stride: int) -> nn.Sequential:
    """Two separable convolutions."""

    def separable(more: int, step: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(dim, dim, 3, step, 1, groups=dim, bias=False)
        return [depthwise, nn.Conv2d(dim, more, 1, bias=False), nn.BatchNorm2d(more), nn.ReLU()]

    return nn.Sequential(*separable(dim, stride), *separable(out, 1))


class MultiHead(nn.Module):
    """A shared trunk and one head for each teacher, (B, in_channels, H, W) to (B, num_classes), the heads' mean.

    Args:
        stages: stages of the trunk; the first one reads the picture.
        dims: number of channels after each stage.
        strides: stride of each stage; a head follows the trunk's size.
        num_teachers: number of heads, K.
        num_features: number of features of a teacher, D.
        num_classes: number of classes.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        strides: Sequence[int],
        *,
        num_teachers: int,
        num_features: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        after, steps = [*dims[1:], num_features], [*strides[1:], 2]
        self.encoders = nn.ModuleList(
            nn.ModuleList(
                _encoder(dim if level == 0 else 2 * dim, out, step)
                for level, (dim, out, step) in enumerate(zip(dims, after, steps, strict=True))
            )
            for _ in range(num_teachers)
        )
        self.classifiers = nn.ModuleList(nn.Linear(num_features, num_classes) for _ in range(num_teachers))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What each head makes of pictures.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Logits, (K, B, num_classes), and features, (K, B, D).
        """
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        features = []
        for encoders in self.encoders:
            y = encoders[0](levels[0])  # type: ignore[index]
            for encoder, level in zip(encoders[1:], levels[1:], strict=True):  # type: ignore[index]
                y = encoder(torch.cat((level, y), 1))
            features.append(y.mean((2, 3)))
        logits = [classify(f) for classify, f in zip(self.classifiers, features, strict=True)]
        return torch.stack(logits), torch.stack(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x)[0].mean(0)


@contextmanager
def observed(teacher: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect what a teacher computes inside: distances at its BatchNorms, and the input of its last linear layer.

    Args:
        teacher: network that ends in a linear layer.

    Yields:
        Filled when the teacher runs: "distances", a list of scalars, and "features", (B, D).

    Raises:
        ValueError: a network without BatchNorm or without a linear layer.
    """
    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    linear = [module for module in teacher.modules() if isinstance(module, nn.Linear)]
    if not norms or not linear:
        raise ValueError(
            f"a teacher needs BatchNorm2d layers and ends in a Linear, got {type(teacher).__name__} "
            f"with {len(norms)} and {len(linear)}; without statistics nothing shows the generator the data"
        )
    found: dict[str, Any] = {"distances": []}
    handles = [
        norm.register_forward_pre_hook(lambda module, given: found["distances"].append(statistics(given[0], module)))
        for norm in norms
    ]
    handles.append(linear[-1].register_forward_pre_hook(lambda _, given: found.update(features=given[0])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _taught(teachers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, (K, B, classes), features, (K, B, D), and distances, (K, layers)."""
    made = []
    for teacher in teachers:
        with observed(teacher) as found:
            logits = teacher(x)
        made.append((logits, found["features"], torch.stack(found["distances"])))
    logits, features, distances = (torch.stack(parts) for parts in zip(*made, strict=True))
    return logits, features, distances


def distil_without_data(
    teachers: Sequence[nn.Module],
    student: MultiHead,
    generator: nn.Module,
    *,
    steps: int = 15_000,
    batch: int = 256,
    student_steps: int = 5,
    lr: float = 0.1,
    generator_lr: float = 1e-3,
    seed: int = 0,
) -> MultiHead:
    """Train a student without data. Learning rates fall tenfold after a third and two thirds of the steps.

    Args:
        teachers: trained networks with as many BatchNorms each, as many as the student has heads; left as they are.
        student: student, trained in place.
        generator: noise to pictures, with `latent`, trained in place if it has parameters.
        steps: number of steps of the generator.
        batch: number of pictures of a step, B.
        student_steps: number of steps of the student before each of the generator.
        lr: learning rate of the student.
        generator_lr: learning rate of the generator.
        seed: seed of the noise.

    Returns:
        The student in eval mode.

    Raises:
        ValueError: another number of teachers than of heads.
    """
    if len(teachers) != len(student.encoders):
        raise ValueError(f"a head is needed for each teacher, got {len(teachers)} and {len(student.encoders)} heads")
    training = [teacher.training for teacher in teachers]
    wanted = [p for teacher in teachers for p in teacher.parameters() if p.requires_grad]
    for teacher in teachers:
        teacher.eval().requires_grad_(False)
    student.train()
    generator.train()
    learner: torch.optim.Optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    optimizers, makes = [learner], list(generator.parameters())
    if makes:
        optimizers.append(torch.optim.Adam(makes, lr=generator_lr))
    falls = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 3 or 1, 2 * steps // 3 or 1])
        for optimizer in optimizers
    ]
    device = next(student.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(steps):
            for _ in range(student_steps):
                with torch.no_grad():
                    x = generator(torch.randn(batch, generator.latent, device=device))  # type: ignore[call-overload]
                    taught, taught_features, _ = _taught(teachers, x)
                logits, features = student.heads(x)
                learner.zero_grad()
                student_loss(logits, taught, features, taught_features).backward()
                learner.step()
            if makes:
                x = generator(torch.randn(batch, generator.latent, device=device))  # type: ignore[call-overload]
                taught, _, distances = _taught(teachers, x)
                optimizers[1].zero_grad()
                generator_loss(student.heads(x)[0], taught, distances).backward()
                optimizers[1].step()
            for fall in falls:
                fall.step()
    for teacher, mode in zip(teachers, training, strict=True):
        teacher.train(mode)
    for parameter in wanted:
        parameter.requires_grad_()
    return student.eval()


def _tiny(seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        teachers = [nn.Sequential(*body, nn.Linear(4, 3)).eval() for _ in range(2)]
        student = MultiHead(
            [nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)],
            (4, 4),
            (2, 2),
            num_teachers=2,
            num_features=4,
            num_classes=3,
        )
        generator = Generator(8, channels=1, latent=4, dim=4)
        distil_without_data(teachers, student, generator, steps=2, batch=4, student_steps=2, seed=seed)
        return student(torch.ones(1, 1, 8, 8)).detach()


METHOD = Method(
    id=25,
    name="CDFKD-MFS",
    kind="procedure",
    summary="Several teachers teach one student with a head for each, on pictures that a generator makes up.",
    paper=Paper(
        "CDFKD-MFS: Collaborative Data-free Knowledge Distillation via Multi-level Feature Sharing",
        "Z. Hao et al.",
        2022,
        "arXiv:2205.11845",
    ),
    cases={"tiny": Procedure(_tiny)},
)
