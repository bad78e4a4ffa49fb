"""An adapter that makes an Embedder an mteb encoder; it does not need torch."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cpt_jax.embed.embedder import Embedder
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import Side

_SIDES: Mapping[str, Side] = {'query': 'x', 'document': 'y'}


class MtebModel:
    """An Embedder with the interface of mteb's EncoderProtocol (version 2).

    Attributes:
      mteb_model_meta: name (`cpt_jax/<run>`), revision (`step_<step>`) and sizes. mteb stores the
        results by name and revision.
    """

    def __init__(self, embed: Embedder, symmetric: Side):
        """Wraps an embedder.

        Args:
          embed: the embedder.
          symmetric: side of all texts in tasks with one kind of text.

        Raises:
          UserError: mteb is not installed.
        """
        self._embed = embed
        self._symmetric = symmetric
        self.mteb_model_meta = _make_meta(embed)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **more: Any
    ) -> np.ndarray:
        """Returns float32[n, D]: the vectors of the texts.

        Args:
          inputs: batches, with a list of texts under 'text'. The text of a document includes its
            title.
          prompt_type: mteb's 'query' or 'document'; None in tasks with one kind of text.
          more: other arguments of mteb. Only `show_progress_bar` is used.
        """
        texts = [text for batch in inputs for text in batch['text']]
        side = self._symmetric
        if prompt_type:
            side = _SIDES[str(getattr(prompt_type, 'value', prompt_type))]
        return self._embed(texts, side, 'texts' if more.get('show_progress_bar') else '')

    def similarity(self, a_NxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
        """Returns float32[N, M]: the similarity of each vector in a and each vector in b.

        It is their dot product, which is the cosine of unit vectors.
        """
        return np.asarray(a_NxD) @ np.asarray(b_MxD).T

    def similarity_pairwise(self, a_NxD: np.ndarray, b_NxD: np.ndarray) -> np.ndarray:
        """Returns float32[N]: the similarities of corresponding vectors."""
        return np.sum(np.asarray(a_NxD) * np.asarray(b_NxD), axis=-1)


def _make_meta(embed: Embedder) -> Any:
    try:
        from mteb.models.model_meta import ModelMeta
    except ImportError:
        raise UserError('mteb is not installed: pip install mteb==2.26.24') from None
    name, _, step = embed.model_name.partition('@')
    return ModelMeta.create_empty(
        {
            'name': f'cpt_jax/{name}',
            'revision': f'step_{step}' if step else 'local',
            'max_tokens': max(embed.settings['max_tokens_x'], embed.settings['max_tokens_y']),
            'embed_dim': embed.width,
            'framework': ['JAX'],
            'similarity_fn_name': embed.settings.get('similarity', 'cosine'),
            'open_weights': True,
        }
    )
