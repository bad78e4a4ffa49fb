"""The form of a run: what is put around texts, and how their states become a vector.

A run that starts from an embedding model keeps that model's form, so that before its first step it
scores as the model does. Scratch and language models get the form of "Text and Code Embeddings by
Contrastive Pre-Training" (section 2): delimiters, and the state at the closing one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cpt_jax.data.equality import resolve_rule
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import PlannedModel, Pretrained
from cpt_jax.origin.resolve import Origin, Scratch
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file

DELIMITER_CHOICES = ('auto', 'paper', 'none')


def keeps_own_form(config: Mapping[str, Any]) -> bool:
    """Whether texts have the special tokens and prompts of a pretrained model."""
    return config['tokenizer']['delimiters'] == 'none'


def resolve_form(
    config: Mapping[str, Any], origin: Origin, previous: EarlierRun | None = None
) -> dict[str, Any]:
    """Returns the config with `model.pooling`, `tokenizer.delimiters` and `prompt.begin_token` in
    place of 'auto'.

    Args:
      config: the sections of configs/base.py.
      origin: the model that a new run starts from.
      previous: the run's own latest checkpoint; None for a new run.

    Raises:
      UserError: the keys do not fit each other or the origin.
    """
    chosen = config['tokenizer'].get('delimiters', 'auto')
    if chosen not in DELIMITER_CHOICES:
        choices = ', '.join(DELIMITER_CHOICES)
        raise UserError(f'tokenizer.delimiters={chosen!r}: choose one of {choices}')
    pooling, delimiters = _find_own_form(config, origin, previous)
    if chosen != 'auto':
        pooling = pooling if chosen == delimiters else _find_pooling(chosen, origin)
        delimiters = chosen
    chosen_pooling = config['model'].get('pooling', 'auto')
    if chosen_pooling != 'auto':
        pooling = chosen_pooling
    resolved = {
        **config,
        'model': {**config['model'], 'pooling': pooling},
        'tokenizer': {**config['tokenizer'], 'delimiters': delimiters},
        'prompt': {**config['prompt'], 'begin_token': _find_begin_token(config, origin, previous)},
    }
    if not previous:
        _check_form(resolved, origin)
    return resolved


def find_begin_ids(config: Mapping[str, Any], origin: Origin) -> list[int] | None:
    """Returns the ids that begin every text of a new run; see `Provenance.begin`.

    Args:
      config: the sections of configs/base.py, after `resolve_form`.
      origin: the model that the run starts from.
    """
    if isinstance(origin, Pretrained):
        return origin.find_begin_ids(config['prompt']['begin_token'])
    return origin.bos_ids


def resolve_equality(
    config: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the config with `data.equal_texts` in place of 'auto'.

    Args:
      config: the sections of configs/base.py.
      stored: the config that the run stored, whose rule it keeps; None for a new run.
    """
    data = {**config['data']}
    if data.get('equal_texts', 'auto') == 'auto':
        data['equal_texts'] = resolve_rule(stored['data'] if stored else {})
    return {**config, 'data': data}


def _find_own_form(
    config: Mapping[str, Any], origin: Origin, previous: EarlierRun | None
) -> tuple[str, str]:
    """Returns the (pooling, delimiters) that 'auto' means."""
    if previous:
        return _read_form(previous)
    if config['objective'] != 'contrastive' or config['prompt'].get('template'):
        return 'eos', 'paper'
    if isinstance(origin, EarlierRun) and not origin.is_language_model:
        return _read_form(origin)
    if isinstance(origin, Pretrained | PlannedModel) and origin.has_own_form:
        return origin.shape['pooling'], 'none'
    return 'eos', 'paper'


def _read_form(run: EarlierRun) -> tuple[str, str]:
    """Returns the (pooling, delimiters) that a run was trained with."""
    config = run.provenance.config
    return config['model']['pooling'], config['tokenizer']['delimiters']


def _find_begin_token(
    config: Mapping[str, Any], origin: Origin, previous: EarlierRun | None
) -> str:
    """Returns `prompt.begin_token`. A run from another run keeps that run's begin token."""
    chosen = config['prompt'].get('begin_token', 'auto')
    if chosen != 'auto':
        return chosen
    run = previous or origin
    if isinstance(run, EarlierRun):
        return run.provenance.config['prompt']['begin_token']
    return 'tokenizer'


def _find_pooling(delimiters: str, origin: Origin) -> str:
    """Returns the pooling that goes with delimiters that the user has chosen."""
    if delimiters == 'none' and isinstance(origin, Pretrained | PlannedModel):
        return origin.shape['pooling']
    return 'eos'


def _check_form(config: Mapping[str, Any], origin: Origin) -> None:
    """Raises UserError if a new run cannot have the form of its config."""
    if isinstance(origin, Scratch | PlannedModel) and config['init_from']:
        return  # a plan, made before its origin exists
    for key, prompt in _list_prompts(config['data']):
        if prompt is not None and not keeps_own_form(config):
            raise UserError(
                f'{key}: texts between delimiters have no prompt; remove it, or '
                f'start from an embedding model with --config.tokenizer.delimiters=none'
            )
    own = isinstance(origin, EarlierRun) and origin.provenance.own_tokenizer is not None
    if not keeps_own_form(config):
        if own:
            raise UserError(
                f'init_from={config["init_from"]}: a run with the special tokens of a pretrained '
                f'model trains contrastively, without delimiters and template; to change that, '
                f'start from an export of the run'
            )
        return
    where = 'tokenizer.delimiters=none'
    if config['objective'] != 'contrastive':
        raise UserError(f'{where}: objective=lm adds no delimiters in any case; set it to auto')
    if config['prompt'].get('template'):
        raise UserError(f'{where}: prompt.template replaces delimiters too; set one of the two')
    if isinstance(origin, Pretrained):
        origin.tokenizer.check_can_be_stored()
        _check_embeds_both_sides(origin)
        _check_pools_prompts(config, origin)
    elif not own:
        raise UserError(
            f'{where}: needs init_from to be a pretrained model, or a run from one that has none'
        )


def _list_prompts(data: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yields each key of the `data` section that sets a prompt, and the prompt."""
    for side, prompt in (data.get('prompts') or {}).items():
        yield f'data.prompts.{side}', prompt
    for name, section in data['sources'].items():
        for key in ('prompt_x', 'prompt_y'):
            yield f'data.sources.{name}.{key}', section.get(key)


def _check_pools_prompts(config: Mapping[str, Any], origin: Pretrained) -> None:
    """Raises UserError for a model that leaves its prompts out of the pooling, which training does
    not do.
    """
    if origin.includes_prompt or config['model']['pooling'] == 'eos':
        return
    replaced = config['data'].get('prompts') or {}
    kept = [text for side, text in origin.tokenizer.prompts.items() if replaced.get(side) is None]
    if any(kept) or any(prompt for _, prompt in _list_prompts(config['data'])):
        raise UserError(
            f'init_from={config["init_from"]}: leaves its prompts out of the pooling '
            f'(include_prompt is false), which training does not: set the prompts to empty texts '
            f"(--config.data.prompts.x='' --config.data.prompts.y=''), or "
            f'--config.tokenizer.delimiters=paper'
        )


def _check_embeds_both_sides(origin: Pretrained) -> None:
    """Raises UserError for `query/` or `document/` of an export, whose tokenizer adds the
    delimiters of one side to every text.
    """
    golden = read_json_file(origin.directory / 'golden.json', optional=True)
    if len(golden.get('vectors', {'x': (), 'y': ()})) == 1 and not golden.get('template'):
        raise UserError(
            f'init_from={origin.directory}: embeds one side only: start from the run that was '
            f'exported, or set --config.tokenizer.delimiters=paper'
        )
