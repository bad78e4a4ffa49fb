"""Builds the parts of a training step from a config and devices, without reading data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.origin.pretrained import PlannedModel, Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.origin.transformer_files import make_bidirectional
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_tokenizer import PromptTokenizer, TextTokenizer
from cpt_jax.text.tokenizer import DELIMITERS
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.form import keeps_own_form, resolve_equality, resolve_form
from cpt_jax.training.language_model import LanguageModel
from cpt_jax.training.objective import Objective
from cpt_jax.training.optimizer import make_optimizer
from cpt_jax.training.sections import Data, Evaluation, Train

OBJECTIVES: dict[str, Callable[[Mapping[str, Any], Data], Objective]] = {
    'contrastive': Contrastive.from_config,
    'lm': LanguageModel.from_config,
}
# Keys of the `model` section that are not part of the architecture.
_CHOSEN_KEYS = (
    'dropout',
    'remat',
    'attention',
    'dtype',
    'layer_loop',
    'gradient_sums',
    'pooling',
    'freeze_dense',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """The parts of a training step that a config determines on given devices.

    Attributes:
      seed: random seed of the initial weights, the batches and dropout.
      mesh: device mesh.
      data: the `data` section.
      train: the `train` section.
      evaluation: the `evaluation` section.
      objective: the loss, with its data and scores.
      optimizer: the optimizer.
      schedule: learning rate as a function of the step.
      tokenizer: the run's tokenizer; None for a plan, which reads no text.
      encoder_config: config of the encoder, with all 'auto' values resolved.
      lora: the `lora` section.
    """

    seed: int
    mesh: jax.sharding.Mesh
    data: Data
    train: Train
    evaluation: Evaluation
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    tokenizer: TextTokenizer | None
    encoder_config: EncoderConfig
    lora: LoRA


def resolve(
    config: Mapping[str, Any],
    devices: Sequence[jax.Device],
    make_tokenizer: Callable[[Objective], TextTokenizer] | None = None,
    platform: str = '',
) -> Resolved:
    """Returns the parts of a training step, after checking that they fit together.

    Args:
      config: the sections of configs/base.py, with the architecture to train.
      devices: devices of the mesh.
      make_tokenizer: returns the run's tokenizer; called after the cheaper checks. None: there is
        no tokenizer, and `tokenizer.vocab_size` is the vocabulary size.
      platform: platform for which 'auto' values of `model` are resolved; '' is that of the devices.

    Raises:
      UserError: a section is invalid, or the sections do not fit each other or the devices.
    """
    mesh = build(make_mesh, 'mesh', config['mesh'], devices=devices)
    train = build(Train, 'train', config['train'])
    data = build(Data, 'data', config['data'])
    objective = make_objective(config, data)
    evaluation = build(Evaluation, 'evaluation', config['evaluation'])
    optimizer, schedule = build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    tokenizer = make_tokenizer(objective) if make_tokenizer else None
    vocab_size = config['tokenizer']['vocab_size']
    # A pretrained model may have more rows than its tokenizer has ids.
    if tokenizer and not isinstance(tokenizer, PretrainedTokenizer):
        vocab_size = tokenizer.vocab_size
    encoder_config = build(EncoderConfig, 'model', config['model'], vocab_size=vocab_size)
    encoder_config = encoder_config.resolve_for(mesh.devices.flat[0], platform)
    encoder_config.check_mesh(mesh)
    objective.check_model(encoder_config)
    lora = build(LoRA, 'lora', config['lora'])
    lora.check(encoder_config, mesh)
    objective.check_lengths(data, encoder_config, *_count_ids_around(tokenizer))
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
    """Returns the objective that the config key `objective` names.

    Raises:
      UserError: the name is unknown, or a key is set that the objective does not use.
    """
    name = config['objective']
    if name not in OBJECTIVES:
        raise UserError(f'objective={name!r}: choose one of {", ".join(OBJECTIVES)}')
    return OBJECTIVES[name](config, data)


def resolve_architecture(
    config: Mapping[str, Any], origin: Origin
) -> tuple[Mapping[str, Any], bool]:
    """Returns the config of a new run with the architecture to train, and whether that architecture
    is inherited from the origin.

    Raises:
      UserError: see `make_objective` and `Objective.refuse_unused_keys`.
    """
    data = build(Data, 'data', config['data'])
    config = resolve_equality(resolve_form(config, origin))
    objective = make_objective(config, data)
    objective.refuse_unused_keys()
    inherited = objective.inherit_architecture(origin)
    if inherited is None:
        return config, False
    model, vocab_size = inherited
    becomes_bidirectional = model.get('causal', True) and not config['model'].get('causal', True)
    if becomes_bidirectional and origin.pretrained_config:
        model = make_bidirectional(model, origin.pretrained_config)
    if keeps_own_form(config) and isinstance(origin, Pretrained | PlannedModel):
        vocab_size = origin.rows
    return replace_architecture(config, model, vocab_size), True


def replace_architecture(
    config: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int
) -> Mapping[str, Any]:
    """Returns `config` with its architecture replaced by that of another model.

    The keys in _CHOSEN_KEYS keep their values. `model.causal=False` in the config makes attention
    bidirectional even if the model is causal. Dense modules are left out if texts have delimiters,
    because they were trained for the model's own vectors.

    Args:
      config: the sections of configs/base.py, after `resolve_form`.
      model: `model` section of the other model.
      vocab_size: its vocabulary size.
    """
    own = config['model']
    kept = {key: own[key] for key in _CHOSEN_KEYS if key in own}
    if not keeps_own_form(config):
        kept['dense'] = ()
    causal = model.get('causal', True) and own.get('causal', True)
    return {
        **config,
        'model': {**model, **kept, 'causal': causal},
        'tokenizer': {**config['tokenizer'], 'vocab_size': vocab_size},
    }


def _count_ids_around(tokenizer: TextTokenizer | None) -> tuple[int, str]:
    """Returns the number of ids put around a text, and their name for messages."""
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer.template_length, 'the template'
    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.added_length, 'special tokens and prompt'
    return len(DELIMITERS) // 2, 'the delimiters'
