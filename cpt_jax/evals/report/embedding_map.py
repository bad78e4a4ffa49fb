"""Two-dimensional maps of the embeddings of labeled texts.

They show how well the embeddings separate the classes; no classifier is trained.
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
# Length of the longer side of a map. Coordinates are integers, which keeps the page small.
LONGER_SIDE = 1_000
MAX_CHARACTERS = 120  # maximum characters of a text on the map
SEED = 0
ROUNDING_FRACTION = 1e-12  # variances below this fraction of the total are set to 0


class Plane(NamedTuple):
    """Coordinates of points in a plane.

    Attributes:
      method: 'PCA' or 'UMAP'.
      x: integers from 0, to the right.
      y: integers from 0, downwards as in SVG.
      explained: fractions of the variance along x and y; [] for UMAP.
    """

    method: str
    x: list[int]
    y: list[int]
    explained: list[float]


class EmbeddingMap(NamedTuple):
    """Maps of a sample of labeled texts.

    Attributes:
      name: data set and part, such as 'SST2, test'.
      of: number of texts from which the sample was drawn.
      classes: names of the classes.
      labels: class index of each point.
      texts: text of each point, cut if it is long.
      planes: coordinates of the points, for each method.
    """

    name: str
    of: int
    classes: list[str]
    labels: list[int]
    texts: list[str]
    planes: list[Plane]


def map_to_json(drawn: EmbeddingMap | None) -> dict[str, dict]:
    """Returns {name: JSON object} of a map, {} for None. Tasks on the same data share a map."""
    if drawn is None:
        return {}
    return {drawn.name: {**drawn._asdict(), 'planes': [plane._asdict() for plane in drawn.planes]}}


def draw_task_map(data: SentEvalSet, embed: Embed) -> EmbeddingMap | None:
    """Returns the map of a data set's test part, or of all texts if there is no split; None for
    pairs of texts.

    The embeddings are those that `data` has cached.
    """
    part = 'test' if 'test' in data.layout.parts else 'all'
    samples = data.read_part(part)
    vectors = data.compute_vectors(embed, part)
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
    """Returns the map of a random sample of texts.

    The sample depends only on the number of texts. Its order is random, so that no class is drawn
    on top of the others.

    Args:
      name: name of the map.
      vectors_NxD: float32, embeddings.
      labels_N: class indices.
      classes: names of the classes.
      texts: the N texts.
      points: maximum size of the sample.
    """
    chosen_P = np.random.default_rng(SEED).permutation(len(vectors_NxD))[:points]
    sample_PxD = vectors_NxD[chosen_P].astype(np.float64)
    xy_Px2, explained_2 = compute_principal_components(sample_PxD)
    planes = [_make_plane('PCA', xy_Px2, np.round(explained_2, 4).tolist())]
    if importlib.util.find_spec('umap') and len(sample_PxD) > 15:  # UMAP uses 15 neighbors
        planes += run_umap(sample_PxD)
    shown = [_cut_text(texts[i]) for i in chosen_P]
    return EmbeddingMap(name, len(texts), list(classes), labels_N[chosen_P].tolist(), shown, planes)


def _cut_text(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + '…'


def compute_principal_components(x_PxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first two principal components, float64[P, 2], and their fractions of the
    variance, float64[2].

    The sign of a component is chosen so that its largest absolute value is positive, so maps are
    reproducible.
    """
    centered_PxD = x_PxD - x_PxD.mean(axis=0)
    # The Gram matrix has a size of P x P for any dimension D.
    variance_P, directions_PxP = np.linalg.eigh(centered_PxD @ centered_PxD.T)
    variance_2 = np.append(variance_P[::-1], 0)[:2]
    # If all vectors are equal, rounding errors would be spread over the whole map.
    variance_2[variance_2 < ROUNDING_FRACTION * np.square(x_PxD).sum()] = 0
    xy_Px2 = np.zeros((len(x_PxD), 2))
    xy_Px2[:, : len(variance_P)] = directions_PxP[:, ::-1][:, :2] * np.sqrt(
        variance_2[: len(variance_P)]
    )
    farthest_2 = xy_Px2[np.abs(xy_Px2).argmax(axis=0), [0, 1]]
    total = np.square(centered_PxD).sum()
    return xy_Px2 * np.where(farthest_2 < 0, -1, 1), variance_2 / max(
        total, np.finfo(np.float64).tiny
    )


def run_umap(x_PxD: np.ndarray) -> list[Plane]:
    """Returns the UMAP plane of unit vectors as a list; [] if umap-learn fails.

    The seed makes the result reproducible.
    """
    try:
        from umap.umap_ import UMAP  # an optional dependency; compiles for a minute on first use

        tqdm.write(f'UMAP of {len(x_PxD):,} texts for the report')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # UMAP warns that a seed disables multithreading
            xy_Px2 = np.asarray(UMAP(random_state=SEED).fit_transform(x_PxD), np.float64)
        return [_make_plane('UMAP', xy_Px2, [])]
    except Exception as error:  # the scores of a task must not be lost because of a plot
        tqdm.write(
            f'no UMAP in the report: umap-learn is installed but failed '
            f'({type(error).__name__}: {error})'
        )
        return []


def _make_plane(method: str, xy_Px2: np.ndarray, explained: list[float]) -> Plane:
    low_2 = xy_Px2.min(axis=0)
    scale = LONGER_SIDE / ((xy_Px2.max(axis=0) - low_2).max() or 1)
    x_P, y_P = np.rint((xy_Px2 - low_2) * scale).astype(int).T
    return Plane(method, x_P.tolist(), (y_P.max() - y_P).tolist(), explained)
