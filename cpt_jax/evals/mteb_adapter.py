"""A model of ours as mteb's encoder: numpy in and out, no torch of our own."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cpt_jax.embed.embedder import Embedder
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import Side

_SIDES: Mapping[str, Side] = {'query': 'x', 'document': 'y'}


class MtebModel:
    """mteb's EncoderProtocol (version 2) around an Embedder.

    Attributes:
      mteb_model_meta: name (`cpt_jax/<run>`), revision (`step_<step>`) and sizes, under which mteb
        files the results.
    """

    def __init__(self, embed: Embedder, symmetric: Side):
        """Raises UserError where mteb is not installed."""
        self._embed, self._symmetric = embed, symmetric
        self.mteb_model_meta = _meta(embed)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **more: Any
    ) -> np.ndarray:
        """float32[n, D]: unit vectors of the texts of mteb's batches.

        Args:
          inputs: batches with their texts under 'text' (of a document: its title and its text).
          prompt_type: mteb's 'query' or 'document'; None where a task has one kind of text.
          more: what mteb says besides; `show_progress_bar` counts.
        """
        texts = [text for batch in inputs for text in batch['text']]
        side = (
            _SIDES[str(getattr(prompt_type, 'value', prompt_type))]
            if prompt_type
            else self._symmetric
        )
        return self._embed(texts, side, 'texts' if more.get('show_progress_bar') else '')

    def similarity(self, a_NxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
        """float32[N, M]: cosines."""
        return np.asarray(a_NxD) @ np.asarray(b_MxD).T

    def similarity_pairwise(self, a_NxD: np.ndarray, b_NxD: np.ndarray) -> np.ndarray:
        """float32[N]: cosines of the vectors at the same places."""
        return np.sum(np.asarray(a_NxD) * np.asarray(b_NxD), axis=-1)


def _meta(embed: Embedder) -> Any:
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
            'similarity_fn_name': 'cosine',
            'open_weights': True,
        }
    )
