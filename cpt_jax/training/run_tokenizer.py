"""The tokenizer of a run: from its checkpoint, its origin or a file, or newly trained."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.remote import fetch
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_template import parse_prompt_section
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import SIDES, Side, Tokenizer, load_tokenizer, train_tokenizer
from cpt_jax.training.form import keeps_own_form
from cpt_jax.training.objective import Objective
from cpt_jax.training.sections import remove_tokenizer_keys


def resolve_tokenizer(
    config: Mapping[str, Any], origin: Origin, objective: Objective
) -> Tokenizer | PretrainedTokenizer:
    """Returns the tokenizer of `origin`; for a run from scratch, the one at `tokenizer.path`, or a
    new one trained on the data sources.

    Args:
      config: the sections of configs/base.py.
      origin: the run's own latest checkpoint; for a new run, the model that it starts from.
      objective: the run's objective.

    Raises:
      UserError: `tokenizer.path` is not the tokenizer that the origin was trained with.
    """
    path = config['tokenizer']['path']
    closing = config['tokenizer']['closing']
    if isinstance(origin, Pretrained):
        if path:
            raise UserError(
                f'tokenizer.path={path}: a run from init_from={config["init_from"]} uses the '
                f'tokenizer of that model; leave tokenizer.path empty'
            )
        if keeps_own_form(config):
            return origin.tokenizer.with_prompts(_read_prompts(config))
        return origin.load_tokenizer(closing)
    if isinstance(origin, EarlierRun):
        tokenizer = origin.load_tokenizer()
        if isinstance(tokenizer, PretrainedTokenizer):
            if path:
                raise UserError(
                    f'tokenizer.path={path}: the run uses the tokenizer of '
                    f'{origin.directory / str(origin.step)}; leave tokenizer.path empty'
                )
            return tokenizer.with_prompts(_read_prompts(config))
        tokenizer = tokenizer.with_closing(closing)
        given = load_tokenizer(fetch(path, 'tokenizer.path'), closing) if path else tokenizer
        if given.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f'tokenizer.path={path} is not the tokenizer that '
                f'{origin.directory / str(origin.step)} was trained with: put the original file '
                f'there, or leave tokenizer.path empty'
            )
        return tokenizer
    if path:
        return load_tokenizer(fetch(path, 'tokenizer.path'), closing)
    return _train_tokenizer(config, objective)


def _read_prompts(config: Mapping[str, Any]) -> dict[Side, str]:
    """Returns the prompts that the config sets, which replace those of the model."""
    prompts = config['data'].get('prompts') or {}
    return {side: prompts[side] for side in SIDES if prompts.get(side) is not None}


def wrap_in_template(
    tokenizer: Tokenizer | PretrainedTokenizer,
    section: Mapping[str, Any],
    bos_ids: Sequence[int] | None,
) -> Tokenizer | PretrainedTokenizer | PromptTokenizer:
    """Returns a tokenizer that puts texts into the template of the `prompt` section; the tokenizer
    itself if the section has no template.

    Args:
      tokenizer: the run's tokenizer.
      section: the `prompt` section.
      bos_ids: ids that begin every text; None if the run does not start from a causal language
        model. Only such a model can read a template.

    Raises:
      UserError: the section is invalid, or it has a template and `bos_ids` is None.
    """
    prompt = parse_prompt_section(section)
    if prompt is None:
        return tokenizer
    if bos_ids is None:
        raise UserError(
            'prompt.template needs init_from to be a causal language model (not BERT): set both '
            'keys, or leave both empty'
        )
    return PromptTokenizer(tokenizer, prompt, bos_ids)


def _train_tokenizer(config: Mapping[str, Any], objective: Objective) -> Tokenizer:
    section = remove_tokenizer_keys('tokenizer', config['tokenizer'])
    return build(
        train_tokenizer,
        'tokenizer',
        section,
        texts=_iterate_training_texts(config, objective),
        seed=config['seed'],
        bos_and_eos=objective.marks_boundaries,
    )


_MOST_SHUFFLED = 20_000_000  # indices of 160 MB


class _FourCharacters:
    """Counts four characters as one token, to cut text into pieces before there is a tokenizer."""

    fingerprint = 'four characters'

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text) // 4) for text in texts]


def _iterate_training_texts(config: Mapping[str, Any], objective: Objective) -> Iterator[str]:
    """Yields the texts of all training pairs, one pair from each source in turn.

    The pairs of a source are shuffled, because training a tokenizer may read only the first texts.
    """
    by_name, _ = objective.load_sources(config['data'], 'train', _FourCharacters())
    sources = list(by_name.values())
    orders = [_make_order(len(source)) for source in sources]
    for position in range(max(map(len, orders))):
        for source, order in zip(sources, orders, strict=True):
            if position < len(order):
                pair = source[int(order[position])]
                yield from filter(None, (pair.x, pair.y))


def _make_order(size: int) -> np.ndarray:
    """Returns int64: all indices in random order; for a very large source a random sample of them,
    many more than a tokenizer reads.
    """
    random = np.random.default_rng(0)
    if size <= _MOST_SHUFFLED:
        return random.permutation(size)
    return random.integers(size, size=_MOST_SHUFFLED)
