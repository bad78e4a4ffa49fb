"""The form of a run: what is put around texts, and how their states become a vector.

A run that starts from an embedding model keeps that model's form, so that before its first step it
scores as the model does. Scratch and language models get the form of "Text and Code Embeddings by
Contrastive Pre-Training" (section 2): delimiters, and the state at the closing one.
"""

from collections.abc import Mapping
from typing import Any

from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runtime.errors import UserError

DELIMITERS = ('auto', 'paper', 'none')


def keeps_own_form(config: Mapping[str, Any]) -> bool:
    """Whether texts have the special tokens and prompts of a pretrained model."""
    return config['tokenizer']['delimiters'] == 'none'


def resolve_form(
    config: Mapping[str, Any], origin: Origin, previous: EarlierRun | None = None
) -> dict[str, Any]:
    """Returns the config with `model.pooling` and `tokenizer.delimiters` in place of 'auto'.

    Args:
      config: the sections of configs/base.py.
      origin: the model that a new run starts from.
      previous: the run's own latest checkpoint; None for a new run.

    Raises:
      UserError: the keys do not fit each other or the origin.
    """
    chosen = config['tokenizer'].get('delimiters', 'auto')
    if chosen not in DELIMITERS:
        raise UserError(f'tokenizer.delimiters={chosen!r}: choose one of {", ".join(DELIMITERS)}')
    pooling, delimiters = _find_own_form(config, origin, previous)
    if chosen != 'auto':
        pooling = pooling if chosen == delimiters else _find_pooling(chosen, origin)
        delimiters = chosen
    pooling = _get_pooling(config) if _get_pooling(config) != 'auto' else pooling
    resolved = {
        **config,
        'model': {**config['model'], 'pooling': pooling},
        'tokenizer': {**config['tokenizer'], 'delimiters': delimiters},
    }
    if not previous:
        _check_form(resolved, origin)
    return resolved


def _find_own_form(
    config: Mapping[str, Any], origin: Origin, previous: EarlierRun | None
) -> tuple[str, str]:
    """Returns the (pooling, delimiters) that 'auto' means."""
    run = previous or origin
    if isinstance(run, EarlierRun):
        if run.is_language_model and not previous:
            return 'eos', 'paper'
        stored = run.provenance.config
        return stored['model']['pooling'], stored['tokenizer']['delimiters']
    is_contrastive = config['objective'] == 'contrastive'
    has_template = bool(config['prompt'].get('template'))
    if (
        isinstance(origin, Pretrained)
        and origin.has_own_form
        and is_contrastive
        and not has_template
    ):
        return origin.shape['pooling'], 'none'
    return 'eos', 'paper'


def _find_pooling(delimiters: str, origin: Origin) -> str:
    """Returns the pooling that goes with delimiters that the user has chosen."""
    if delimiters == 'none' and isinstance(origin, Pretrained):
        return origin.shape['pooling']
    return 'eos'


def _get_pooling(config: Mapping[str, Any]) -> str:
    return config['model'].get('pooling', 'auto')


def _check_form(config: Mapping[str, Any], origin: Origin) -> None:
    """Raises UserError if a new run cannot have the form of its config."""
    prompts = config['data'].get('prompts') or {}
    for side, prompt in prompts.items():
        if side not in ('x', 'y'):
            raise UserError(f'unknown config key data.prompts.{side}: data.prompts has x, y')
        if prompt is not None and not keeps_own_form(config):
            raise UserError(
                f'data.prompts.{side}: texts between delimiters have no prompt; remove it, or '
                f'start from an embedding model with --config.tokenizer.delimiters=none'
            )
    if not keeps_own_form(config):
        return
    where = 'tokenizer.delimiters=none'
    if config['objective'] != 'contrastive':
        raise UserError(f'{where}: objective=lm adds no delimiters in any case; set it to auto')
    if config['prompt'].get('template'):
        raise UserError(f'{where}: prompt.template replaces delimiters too; set one of the two')
    own = isinstance(origin, EarlierRun) and origin.provenance.own_tokenizer is not None
    if isinstance(origin, Pretrained):
        origin.tokenizer.settings  # noqa: B018  raises UserError if it cannot be stored
    elif not own:
        raise UserError(
            f'{where}: needs init_from to be a pretrained model, or a run from one that has none'
        )
