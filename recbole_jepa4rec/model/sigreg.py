"""SIGReg, which keeps embeddings from collapsing without a target encoder.

After Balestriero and LeCun 2025, "LeJEPA" (arXiv 2511.08544), as their code has it: embeddings are
pulled towards the isotropic normal distribution N(0, I), under which no direction can vanish. Seen
along any one direction such vectors are standard normal numbers; how far they are from that is Epps
and Pulley's statistic, a distance between characteristic functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive, normal

KNOTS, LAST_KNOT = 17, 3.0
"""Where characteristic functions are compared: at so many points, evenly from 0 on."""

ANGLES_AT_ONCE = 2**22
"""Whose cosine and sine are held at once: 32 MiB."""


def draw_directions(key: Tensor | int, size: int, directions: int) -> Tensor:
    """Unit vectors, uniform on the sphere.

    Args:
        key: random key, scalar; the same key gives the same directions in every process.
        size: D.
        directions: M.

    Returns:
        ``[D, M]`` on the CPU.
    """
    keys = derive(key, Draw.DIRECTIONS, torch.arange(size * directions))
    drawn = normal(keys).view(size, directions)
    return drawn / drawn.norm(dim=0)


def sigreg(vectors: Tensor, directions: Tensor) -> Tensor:
    """How far vectors are from a sample of N(0, I): the mean over directions a.

    Along each it is ``N sum_k w_k [(mean cos(t_k a.z) - exp(-t_k^2 / 2))^2 + (mean sin(t_k
    a.z))^2]``. Its size does not depend on N where the vectors are such a sample, and else grows
    with N.

    Args:
        vectors: z, ``[N, D]``, maybe none.
        directions: unit vectors, ``[D, M]``, the same in all processes.

    Returns:
        This process's part of the statistic over the vectors of all processes, in float32: scalar,
        >= 0; zero where there is no vector.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        projected = processes.all_gather(vectors.float() @ directions.to(vectors.device))
    if not len(projected):
        return projected.sum()
    return _EppsPulley.apply(projected) / processes.world_size()


def quadrature(device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Knots t_k and weights w_k, ``[K]`` each, on the device.

    Weights are the trapezoidal rule's on both sides of 0, 2 dt and dt at the ends, times
    ``exp(-t_k^2 / 2)``.
    """
    knots = torch.linspace(0, LAST_KNOT, KNOTS, device=device)
    weights = torch.full_like(knots, 2 * LAST_KNOT / (KNOTS - 1))
    weights[:: KNOTS - 1] /= 2
    return knots, weights * (-knots.square() / 2).exp()


class _EppsPulley(torch.autograd.Function):
    """The statistic of each column of numbers, and its mean; some columns at a time.

    The forward pass makes the gradient as well, while cosines and sines are at hand.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        """``[N, M]`` to the mean over M."""
        knots, weights = quadrature(projected.device)
        normal_one = (-knots.square() / 2).exp()
        gradient, total = torch.empty_like(projected), projected.new_zeros(())
        size = max(1, ANGLES_AT_ONCE // (len(projected) * KNOTS))
        for numbers, slope in zip(projected.split(size, 1), gradient.split(size, 1), strict=True):
            angles = numbers[:, :, None] * knots
            cosines, sines = angles.cos(), angles.sin_()
            real, imaginary = cosines.mean(dim=0) - normal_one, sines.mean(dim=0)
            total += ((real.square() + imaginary.square()) @ weights).sum() * len(projected)
            turned = cosines.mul_(imaginary).sub_(sines.mul_(real))
            slope.copy_(turned @ (2 * weights * knots))
        ctx.save_for_backward(gradient)
        return total / projected.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """What the forward pass made, times what is asked for."""
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] / gradient.shape[1])
