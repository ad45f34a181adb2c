"""Codes of items: how vectors become codes, codes become embeddings, and these change places.

Codes are those of optimised product quantisation (Ge et al., CVPR 2013), on sklearn's k-means.
Why not faiss: on one core of the same machine its training took 40 s for 2,000 vectors of 384
dimensions (32 digits of 256 values) and this takes 4 s for 1,664 of them; with 8 rounds instead of
4 it takes 7 s and leaves 12.0 instead of 12.3 % of the variance unexplained (14.4 % with one).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from recbole_jepa4rec.base.keyed_random import Draw, below, derive, uniform
from recbole_jepa4rec.text.tensor_cache import TensorCache, content_key

ROUNDS = 4
"""Alternations of k-means and rotation; the error hardly falls after these."""

MOST_VECTORS = 65536
"""Vectors that codebooks are learnt from, evenly spaced among all."""


class ProductQuantiser(nn.Module):
    """A rotation, and a codebook for each of the parts a rotated vector is cut into.

    Buffers, saved with a model since its code embeddings mean nothing without them: ``rotation``
    ``[W, W]`` and ``centroids`` ``[D, M, W / D]``.

    Args:
        rotation: orthogonal, ``[W, W]``.
        centroids: ``[D, M, W / D]``.
    """

    rotation: Tensor
    centroids: Tensor

    def __init__(self, rotation: Tensor, centroids: Tensor) -> None:
        super().__init__()
        self.register_buffer("rotation", rotation)
        self.register_buffer("centroids", centroids)

    @classmethod
    def fit(cls, vectors: Tensor, digits: int, values: int) -> ProductQuantiser:
        """Learn codebooks and rotation in turns, from a fixed seed.

        With fewer different vectors than ``values``, the codebooks' ends repeat their first
        centroid and no code has these values.

        Args:
            vectors: ``[R, W]``.
            digits: parts of a vector ``D``, a divisor of ``W``.
            values: centroids of a codebook ``M``.

        Raises:
            ValueError: if ``digits`` does not divide ``W``.
        """
        if vectors.shape[1] % digits:
            raise ValueError(
                f"code_digits={digits} does not divide the {vectors.shape[1]} dimensions of the "
                "item vectors"
            )
        step = -(-len(vectors) // MOST_VECTORS)
        points = np.unique(vectors[::step].cpu().double().numpy(), axis=0)
        rotation = _spread_variance(points, digits)
        books: list[np.ndarray] | None = None
        for round_ in range(ROUNDS):
            parts = np.split(points @ rotation, digits, axis=1)
            books = _codebooks(parts, min(values, len(points)), books, last=round_ == ROUNDS - 1)
            if round_ < ROUNDS - 1:
                nearest = [_nearest(part, book) for part, book in zip(parts, books, strict=True)]
                rebuilt = [book[code] for book, code in zip(books, nearest, strict=True)]
                rotation = procrustes(points, np.concatenate(rebuilt, axis=1))
        assert books is not None
        padded = [np.concatenate([b, np.repeat(b[:1], values - len(b), axis=0)]) for b in books]
        return cls(torch.from_numpy(rotation).float(), torch.from_numpy(np.stack(padded)).float())

    @classmethod
    def cached(
        cls, vectors: Tensor, digits: int, values: int, key: str, cache_dir: Path
    ) -> ProductQuantiser:
        """As :meth:`fit`, or from a folder's cache, by the ``key`` of the vectors' content."""
        settings = [key, str(digits), str(values), str(ROUNDS), str(MOST_VECTORS)]
        cache = TensorCache(cache_dir, "codebooks", content_key(settings))
        stored = cache.read()
        if stored is not None:
            return cls(stored["rotation"], stored["centroids"])
        fitted = cls.fit(vectors, digits, values)
        cache.write(dict(fitted.named_buffers()))
        return fitted

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """Codes: the nearest centroid of each part, ``[R, W]`` to int64 ``[R, D]``."""
        digits, _, part = self.centroids.shape
        codes = []
        for chunk in vectors.split(4096):
            parts = (chunk @ self.rotation).view(len(chunk), digits, part).transpose(0, 1)
            norms = self.centroids.square().sum(dim=2)[:, None]
            distances = norms - 2 * parts @ self.centroids.transpose(1, 2)  # [D, R, M], + |x|^2
            codes.append(distances.argmin(dim=2).T)
        return torch.cat(codes) if codes else vectors.new_zeros(0, digits, dtype=torch.int64)


def procrustes(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The rotation R that brings ``points @ R`` nearest to ``targets`` (Schönemann 1966)."""
    left, _, right = np.linalg.svd(points.T @ targets)
    return left @ right


def _spread_variance(points: np.ndarray, digits: int) -> np.ndarray:
    """Principal directions dealt out to the parts, so that all have much to tell (Ge et al. 3.2).

    Each goes to the part that has the least variance so far and room.
    """
    width = points.shape[1]
    variance, directions = np.linalg.eigh(np.cov(points.T) if len(points) > 1 else np.eye(width))
    load, parts = np.zeros(digits), [[] for _ in range(digits)]  # type: ignore[var-annotated]
    for direction in np.argsort(-variance, kind="stable"):
        room = [len(part) < width // digits for part in parts]
        part = int(np.argmin(np.where(room, load, np.inf)))
        parts[part].append(direction)
        load[part] += variance[direction]
    return directions[:, np.concatenate(parts)]


def _codebooks(
    parts: list[np.ndarray], size: int, books: list[np.ndarray] | None, last: bool
) -> list[np.ndarray]:
    """Centroids of every part: from scratch, or moved on from the ones before."""
    found = []
    for number, part in enumerate(parts):
        kmeans = KMeans(
            size,
            init="k-means++" if books is None else books[number],
            n_init=1,
            max_iter=20 if last else 4,
            random_state=number,
            tol=0,
        )
        with warnings.catch_warnings():  # a part may have fewer different points than centroids
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(kmeans.fit(part).cluster_centers_)
    return found


def _nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return (np.square(centroids).sum(axis=1) - 2 * points @ centroids.T).argmin(axis=1)


def mean_of_codes(code_embedding: Tensor, codes: Tensor) -> Tensor:
    """Mean of the embeddings of a code's digits (VQRec, Eq. 3).

    Args:
        code_embedding: E, one table for each digit, ``[D, M, H]``.
        codes: int64 ``[R, D]``.

    Returns:
        ``[R, H]``.
    """
    digits, values, hidden_size = code_embedding.shape
    first = torch.arange(digits, device=codes.device) * values
    table = code_embedding.reshape(digits * values, hidden_size)
    return F.embedding_bag(codes + first, table, mode="mean")


def replaced_digits(codes: Tensor, values: int, ratio: float, keys: Tensor) -> Tensor:
    """Codes whose digits take a random value with probability ``ratio`` each, int64 ``[R, D]``.

    Args:
        codes: ``[R, D]``.
        values: of a digit.
        ratio: rho.
        keys: one random key for each code, ``[R]``.
    """
    digits = torch.arange(codes.shape[1], device=codes.device)
    replaced = uniform(derive(keys[:, None], Draw.CODE_DROP, digits)) < ratio
    drawn = below(derive(keys[:, None], Draw.CODE, digits), values)
    return torch.where(replaced, drawn, codes)


class CodePermutation(nn.Module):
    """Which embedding each code of another catalogue takes over (VQRec 2.3.1).

    One doubly stochastic matrix for each digit: permutations, relaxed to be learnt by gradient. By
    Birkhoff's theorem these matrices are the convex hull of the permutations. They come from
    free parameters by Sinkhorn's iteration.

    Args:
        digits: of a code, ``D``.
        values: of a digit, ``M``.
        iterations: of Sinkhorn, normalising rows and columns once each.
    """

    def __init__(self, digits: int, values: int, iterations: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(digits, values, values))
        self.iterations = iterations

    def forward(self, code_embedding: Tensor) -> Tensor:
        """The embeddings in the new codes' order, ``[D, M, H]`` to ``[D, M, H]``."""
        return sinkhorn(self.logits, self.iterations) @ code_embedding


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Matrices whose rows and columns sum to 1, the latter exactly, ``[..., M, M]``.

    Args:
        logits: logarithms of the matrices' first entries.
        iterations: normalisations of all rows and then all columns.
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits.exp()
