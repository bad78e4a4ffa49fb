"""The tokenizer of a run: its own, that of its origin, one from a file, or a new one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import configured
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from cpt_jax.training.objective import Objective


def resolve_tokenizer(config: Mapping[str, Any], origin: Origin, objective: Objective) -> Tokenizer:
    """Returns the tokenizer of `origin`; from scratch the one that the config names, or a new one
    trained on the sources.

    Args:
      origin: the latest checkpoint of the run itself, or else what it starts from.

    Raises:
      UserError: `tokenizer.path` names another tokenizer than the origin was trained with.
    """
    path, closing = config['tokenizer']['path'], config['tokenizer']['closing']
    if isinstance(origin, Pretrained):
        if path:
            raise UserError(
                f'tokenizer.path={path}: a run from init_from={config["init_from"]} has the '
                f'tokenizer of that model'
            )
        return origin.load_tokenizer(closing)
    if isinstance(origin, EarlierRun):
        tokenizer = origin.load_tokenizer().closed(closing)
        if path and load_tokenizer(path, closing).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f'tokenizer.path={path} is not the tokenizer that '
                f'{origin.directory / str(origin.step)} was trained with: put that one there, or '
                'none'
            )
        return tokenizer
    if path:
        return load_tokenizer(path, closing)
    return _train_tokenizer(config, objective)


def wrap_in_template(
    tokenizer: Tokenizer, section: Mapping[str, Any], bos_ids: Sequence[int] | None
) -> Tokenizer | PromptTokenizer:
    """Returns the tokenizer with the template of the `prompt` section around texts, if it has one.

    Raises:
      UserError: the section is wrong, or the run comes from no causal language model, which alone
        can make sense of a template.
    """
    prompt = configured(section)
    if prompt is None:
        return tokenizer
    if bos_ids is None:
        raise UserError(
            'prompt.template goes with init_from, which must be a causal language model that can '
            'read it (no BERT, and not empty): set both, or neither'
        )
    return PromptTokenizer(tokenizer, prompt, bos_ids)


def _train_tokenizer(config: Mapping[str, Any], objective: Objective) -> Tokenizer:
    section = {key: value for key, value in config['tokenizer'].items() if key != 'path'}
    return build(
        train_tokenizer,
        'tokenizer',
        section,
        texts=_training_texts(config, objective),
        seed=config['seed'],
        boundaries=objective.marks_boundaries,
    )


class _FourCharacters:
    """Counts four characters as a token where text is cut into pieces to train a tokenizer."""

    fingerprint = 'four characters'

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text) // 4) for text in texts]


def _training_texts(config: Mapping[str, Any], objective: Objective) -> Iterator[str]:
    """Yields the texts of all sources' training pairs, source after source in turn, each in an
    order that mixes its files.
    """
    by_name, _ = objective.load_sources(config['data']['sources'], 'train', _FourCharacters())
    sources = list(by_name.values())
    orders = [np.random.default_rng(0).permutation(len(source)) for source in sources]
    for place in range(max(map(len, orders))):
        for source, order in zip(sources, orders, strict=True):
            if place < len(order):
                pair = source[int(order[place])]
                yield from filter(None, (pair.x, pair.y))
