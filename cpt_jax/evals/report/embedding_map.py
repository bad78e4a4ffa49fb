"""Labelled texts as points of a plane: what can be seen of their classes in the vectors, before
anything is trained.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.embed.function import Embed

POINTS = 1_000
# Length of the longer side of a map; coordinates are whole numbers, which keeps the page small.
SPAN = 1_000
CHARACTERS = 120  # of a text
SEED = 0
ROUNDING = 1e-12


class Plane(NamedTuple):
    """The positions of points in a plane.

    Attributes:
      method: 'PCA' or 'UMAP'.
      x, y: whole numbers from 0, y downwards.
      explained: for PCA, the shares of the points' variance along x and along y.
    """

    method: str
    x: list[int]
    y: list[int]
    explained: list[float]


class EmbeddingMap(NamedTuple):
    """A sample of a set of labelled texts as points, in one plane or more.

    Attributes:
      name: set and part: 'SST2, test'.
      of: number of texts in the set.
      classes: names of the classes.
      labels: class of each point.
      texts: text of each point, cut where it is long.
      planes: positions of the points.
    """

    name: str
    of: int
    classes: list[str]
    labels: list[int]
    texts: list[str]
    planes: list[Plane]


def map_json(drawn: EmbeddingMap | None) -> dict[str, dict]:
    """Returns a map as a JSON object by its name, {} for None. Several tasks may have one map."""
    if drawn is None:
        return {}
    return {drawn.name: {**drawn._asdict(), 'planes': [plane._asdict() for plane in drawn.planes]}}


def map_of(data: SentEvalSet, embed: Embed) -> EmbeddingMap | None:
    """Of the test part of a task's data, or of all where there is no split; None of pairs of texts.
    Takes the vectors that `data` keeps.
    """
    part = 'test' if 'test' in data.layout.parts else 'all'
    samples, vectors = data.part(part), data.vectors(embed, part)
    if len(vectors) > 1:
        return None
    return draw_map(
        f'{data.name}, {part}', vectors[0], samples.labels, data.layout.classes, samples.texts[0]
    )


def draw_map(
    name: str,
    vectors_NxD: np.ndarray,
    labels_N: np.ndarray,
    classes: Sequence[str],
    texts: Sequence[str],
    points: int = POINTS,
) -> EmbeddingMap:
    """A map of at most so many of the vectors, float32[N, D]; the same ones of equal texts, in an
    order that mixes the classes.
    """
    chosen_P = np.random.default_rng(SEED).permutation(len(vectors_NxD))[:points]
    sample_PxD = vectors_NxD[chosen_P].astype(np.float64)
    xy_Px2, explained_2 = principal_components(sample_PxD)
    planes = [_plane('PCA', xy_Px2, np.round(explained_2, 4).tolist())]
    if importlib.util.find_spec('umap') and len(sample_PxD) > 15:  # its number of neighbours
        planes += umap(sample_PxD)
    cut = [
        text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + '…'
        for text in (texts[i] for i in chosen_P)
    ]
    return EmbeddingMap(name, len(texts), list(classes), labels_N[chosen_P].tolist(), cut, planes)


def principal_components(x_PxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[P, 2] coordinates along the two directions of most variance, and their shares of it;
    the farthest point lies on the positive side of each, so that a map is the same everywhere."""
    centered_PxD = x_PxD - x_PxD.mean(axis=0)
    # Of P points, however wide they are.
    variance_P, directions_PxP = np.linalg.eigh(centered_PxD @ centered_PxD.T)
    variance_2 = np.append(variance_P[::-1], 0)[:2]
    # Where all vectors are one, what is left would be spread over the map.
    variance_2[variance_2 < ROUNDING * np.square(x_PxD).sum()] = 0
    xy_Px2 = np.zeros((len(x_PxD), 2))
    xy_Px2[:, : len(variance_P)] = directions_PxP[:, ::-1][:, :2] * np.sqrt(
        variance_2[: len(variance_P)]
    )
    farthest_2 = xy_Px2[np.abs(xy_Px2).argmax(axis=0), [0, 1]]
    total = np.square(centered_PxD).sum()
    return xy_Px2 * np.where(farthest_2 < 0, -1, 1), variance_2 / max(
        total, np.finfo(np.float64).tiny
    )


def umap(x_PxD: np.ndarray) -> list[Plane]:
    """What umap-learn makes of unit vectors, with a seed, which makes it the same every time; none
    where it is there and does not work.
    """
    try:
        from umap.umap_ import UMAP  # no requirement; the first time it compiles for a minute

        tqdm.write(f'UMAP of {len(x_PxD):,} texts for the report')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that a seed leaves one thread
            return [
                _plane(
                    'UMAP', np.asarray(UMAP(random_state=SEED).fit_transform(x_PxD), np.float64), []
                )
            ]
    except Exception as error:  # a picture is no reason to lose the scores of its task
        tqdm.write(
            f'no UMAP in the report: umap-learn is installed and does not work '
            f'({type(error).__name__}: {error})'
        )
        return []


def _plane(method: str, xy_Px2: np.ndarray, explained: list[float]) -> Plane:
    low_2 = xy_Px2.min(axis=0)
    scale = SPAN / ((xy_Px2.max(axis=0) - low_2).max() or 1)
    x_P, y_P = np.rint((xy_Px2 - low_2) * scale).astype(int).T
    return Plane(method, x_P.tolist(), (y_P.max() - y_P).tolist(), explained)
