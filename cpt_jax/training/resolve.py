"""From a config and devices to all that a training step is made of; no data is read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import DELIMITERS, Tokenizer
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.language_model import LanguageModel
from cpt_jax.training.objective import Objective
from cpt_jax.training.optimizer import make_optimizer
from cpt_jax.training.sections import Data, Evaluation, Train

OBJECTIVES: dict[str, Callable[[Mapping[str, Any], Data], Objective]] = {
    'contrastive': Contrastive.from_config,
    'lm': LanguageModel.from_config,
}
# Keys of `model` that say how it is computed, whichever architecture it has.
_HOW_IT_IS_COMPUTED = ('dropout', 'remat', 'attention', 'dtype', 'layer_loop')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a config decides on given devices.

    Attributes:
      seed: of the initial weights, the batches and dropout.
      tokenizer: None for a plan, which reads no text.
      schedule: step -> learning rate.
    """

    seed: int
    mesh: jax.sharding.Mesh
    data: Data
    train: Train
    evaluation: Evaluation
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    tokenizer: Tokenizer | PromptTokenizer | None
    encoder_config: EncoderConfig
    lora: LoRA


def resolve(
    config: Mapping[str, Any],
    devices: Sequence[jax.Device],
    make_tokenizer: Callable[[Objective], Tokenizer | PromptTokenizer] | None = None,
    platform: str = '',
) -> Resolved:
    """Returns all that a training step is made of, checked against each other.

    Args:
      config: the sections of configs/base.py, with the architecture that is trained.
      devices: those of the mesh.
      make_tokenizer: makes the run's tokenizer once everything before it is checked; None: there
        is none, and the vocabulary is `tokenizer.vocab_size`.
      platform: decides what 'auto' means in `model`; '': that of the devices.

    Raises:
      UserError: a section is wrong, or the sections do not fit each other or the devices.
    """
    mesh = build(make_mesh, 'mesh', config['mesh'], devices=devices)
    train = build(Train, 'train', config['train'])
    data = build(Data, 'data', config['data'])
    objective = make_objective(config, data)
    evaluation = build(Evaluation, 'evaluation', config['evaluation'])
    optimizer, schedule = build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    tokenizer = make_tokenizer(objective) if make_tokenizer else None
    vocab_size = tokenizer.vocab_size if tokenizer else config['tokenizer']['vocab_size']
    encoder_config = build(EncoderConfig, 'model', config['model'], vocab_size=vocab_size)
    encoder_config = encoder_config.on(platform or mesh.devices.flat[0].platform)
    encoder_config.check_mesh(mesh)
    objective.check(encoder_config)
    lora = build(LoRA, 'lora', config['lora'])
    lora.check(encoder_config, mesh)
    objective.check_lengths(data, encoder_config, *_ids_around(tokenizer))
    return Resolved(
        seed=config['seed'],
        mesh=mesh,
        data=data,
        train=train,
        evaluation=evaluation,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        tokenizer=tokenizer,
        encoder_config=encoder_config,
        lora=lora,
    )


def make_objective(config: Mapping[str, Any], data: Data) -> Objective:
    """Returns the objective that a config names.

    Raises:
      UserError: there is no such one, or it has no use for another key.
    """
    name = config['objective']
    if name not in OBJECTIVES:
        raise UserError(f'objective={name!r}: choose one of {", ".join(OBJECTIVES)}')
    return OBJECTIVES[name](config, data)


def inherit(config: Mapping[str, Any], origin: Origin) -> tuple[Mapping[str, Any], bool]:
    """Returns a new run's config with the architecture of its origin, and whether it has that.

    Raises:
      UserError: see `make_objective`.
    """
    data = build(Data, 'data', config['data'])
    inherited = make_objective(config, data).inherit_architecture(origin)
    if inherited is None:
        return config, False
    return with_architecture(config, *inherited), True


def with_architecture(
    config: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int
) -> Mapping[str, Any]:
    """Returns `config` with the architecture of a model in place of its own.

    How it is computed stays the config's to say, and `model.causal=False` lets every token of a
    causal model see its whole text. Vectors are states at the closing delimiter, as of any run,
    whatever the pooling of the model was, and Dense modules behind it are left out.
    """
    chosen = config['model']
    kept = {key: chosen[key] for key in _HOW_IT_IS_COMPUTED if key in chosen}
    causal = model.get('causal', True) and chosen.get('causal', True)
    return {
        **config,
        'model': {**model, **kept, 'pooling': 'eos', 'causal': causal},
        'tokenizer': {**config['tokenizer'], 'vocab_size': vocab_size},
    }


def _ids_around(tokenizer: Tokenizer | PromptTokenizer | None) -> tuple[int, str]:
    """Number of ids that are put around a text, and what they are."""
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer.around, 'the template'
    return len(DELIMITERS) // 2, 'the delimiters'
