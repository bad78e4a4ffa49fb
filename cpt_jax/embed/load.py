"""A model reference -> its embedder."""

from typing import Any, NamedTuple

import jax

from cpt_jax.embed.embedder import Embedder, describe_settings
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import load_dense
from cpt_jax.origin.earlier_run import EarlierRun, find_run
from cpt_jax.origin.frozen_base import load_adapted
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.pretrained_tokenizer import OwnTokenizer
from cpt_jax.text.prompt_template import OWN, Representation, configured
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Side, Tokenizer


def load_embedder(
    reference: str,
    *,
    pooling: str = '',
    dtype: str = '',
    max_tokens: int = 0,
    representation: Representation = OWN,
    fsdp: int = 1,
) -> Embedder:
    """Loads a model for embedding, onto all devices.

    Args:
      reference: a run's directory, or `run@step`; without a step the latest checkpoint. Or a
        directory with a pretrained model.
      pooling: of a pretrained directory that says none; see `open_pretrained`.
      dtype: of activations: auto, float32 or bfloat16; '': as the run's config says, auto for a
        pretrained model.
      max_tokens: of the texts of both sides, with all that stands around them; 0: as the model
        says.
      representation: what texts stand in and which state counts, of a causal language model or a
        run that was trained with a template.
      fsdp: devices that share one copy of the parameters, each a part of it.

    Raises:
      UserError: there is no such run or checkpoint; or it cannot be read, says its own pooling, or
        has no use for the representation.
    """
    if pooling and not representation.is_own:
        raise UserError(
            f'--pooling {pooling}: a --representation or --template says which states count; '
            f'leave the flag out'
        )
    if fsdp > 1 and jax.device_count() % fsdp:
        raise UserError(
            f'--fsdp {fsdp}: the {jax.device_count():,} devices here are no multiple of it'
        )
    mesh = make_mesh(fsdp=fsdp)
    model = resolve_model(reference, '--model', pooling)
    if isinstance(model, Pretrained):
        return _embedder_of_pretrained(model, dtype or 'auto', max_tokens, representation, mesh)
    if pooling:
        raise UserError(
            f'--pooling {pooling}: {reference} is a run, whose config says its pooling; leave the '
            f'flag out'
        )
    reading = _read_run(model, dtype, max_tokens, representation)
    return _embedder_of_run(model, reading, mesh)


def read_settings(reference: str, representation: Representation = OWN) -> dict[str, Any]:
    """Returns the `settings` of the embedder that `load_embedder` makes of a run's checkpoint,
    without reading its parameters.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    run = find_run(reference, '--model')
    reading = _read_run(run, '', 0, representation)
    return describe_settings(
        reading.encoder_config, reading.tokenizer, reading.limits, reading.origin
    )


class _Reading(NamedTuple):
    """How a run reads texts, and what its vectors depend on besides.

    Attributes:
      limits: most tokens of a text of each side.
      origin: where the parameters come from, as plain values for `settings`.
    """

    encoder_config: EncoderConfig
    tokenizer: Tokenizer | PromptTokenizer
    limits: dict[Side, int]
    origin: dict[str, Any]


def _embedder_of_run(run: EarlierRun, reading: _Reading, mesh: jax.sharding.Mesh) -> Embedder:
    config, tokenizer = reading.encoder_config, reading.tokenizer
    config.check_mesh(mesh)
    if run.provenance.has_adapters:
        encoder = load_adapted(run, config, mesh, tokenizer.added)
    else:
        encoder = run.load_encoder(config, mesh)
    return Embedder(
        encoder, tokenizer, mesh, reading.limits, run.name, run.run_dir.path, reading.origin
    )


def _read_run(
    run: EarlierRun, dtype: str, max_tokens: int, representation: Representation
) -> _Reading:
    if run.is_language_model and representation.is_own:
        raise UserError(
            f'--model {run.reference}: a language model (objective=lm), whose states were not '
            'trained to be vectors: train contrastively from it (launch/train.py --config CONFIG '
            f'--config.init_from={run.reference}), or give --representation prompteol'
        )
    config = run.provenance.config
    tokenizer = _wrap_in_template(run, representation)
    # Whatever was chosen for the machine that it was trained on.
    here = {'attention': 'auto', 'layer_loop': 'auto'}
    if dtype:
        here['dtype'] = dtype
    if not representation.is_own:
        here['pooling'] = representation.pooling
    encoder_config = run.encoder_config(tokenizer.vocab_size, **here)
    encoder_config = encoder_config.on(jax.devices()[0].platform)
    limits: dict[Side, int] = {
        'x': max_tokens or config['data']['max_tokens_x'],
        'y': max_tokens or config['data']['max_tokens_y'],
    }
    # A run's own limits are those of its training, where texts may be cut short on purpose.
    if isinstance(tokenizer, PromptTokenizer):
        limits = dict.fromkeys(limits, max_tokens or encoder_config.max_length)
    return _Reading(encoder_config, tokenizer, limits, _describe_origin(run))


def _describe_origin(run: EarlierRun) -> dict[str, Any]:
    """Where a run's parameters come from, as plain values."""
    provenance = run.provenance
    origin = {
        'step': run.step,
        'saved': run.saved,
        'code': provenance.code,
        'trained_on': provenance.config['data']['sources'],
    }
    if provenance.base:
        base = {'path': provenance.base.path, 'fingerprint': provenance.base.fingerprint}
        origin |= {'lora': provenance.config['lora'], 'base': base}
    return origin


def _wrap_in_template(
    run: EarlierRun, representation: Representation
) -> Tokenizer | PromptTokenizer:
    """The run's tokenizer, with the template of the run or of the representation around texts."""
    own, tokenizer = configured(run.provenance.config['prompt']), run.load_tokenizer()
    if representation.is_own and not own:
        if representation.demonstrations:
            raise UserError(
                f'--demonstration: {run.reference} was trained between delimiters, and has no '
                f'template to show them in'
            )
        return tokenizer
    if not own and not run.is_language_model:
        raise UserError(
            f'--representation: {run.reference} was trained between delimiters; leave '
            f'--representation and --template out'
        )
    prompt = representation.prompt(own.template if own else '')
    return PromptTokenizer(tokenizer, prompt, run.bos_ids or ())


def _embedder_of_pretrained(
    model: Pretrained,
    dtype: str,
    max_tokens: int,
    representation: Representation,
    mesh: jax.sharding.Mesh,
) -> Embedder:
    """A model with its own tokens, prompts and pooling, or with those of a representation; weights
    stay in the dtype of their files.
    """
    tokenizer: OwnTokenizer | PromptTokenizer = model.tokenizer
    arguments = dict(model.shape)
    if representation.is_own and representation.demonstrations:
        raise UserError(
            '--demonstration: give --representation prompteol or a --template that they are shown '
            'in'
        )
    if not representation.is_own:
        _check_language_model(model)
        tokenizer = PromptTokenizer(model.tokenizer, representation.prompt(), model.tokenizer.begin)
        arguments['pooling'] = representation.pooling
    config = EncoderConfig(vocab_size=model.rows, dtype=dtype, **arguments)
    config = config.on(mesh.devices.flat[0].platform)
    config.check_mesh(mesh)
    encoder = model.load_encoder(config, mesh)
    dense = load_dense(model.dense, config.embedding_width, mesh)
    origin: dict[str, Any] = {'trained_on': {}}
    if dense:
        origin['dense'] = [list(layer.weight_ExD.shape[::-1]) for layer in dense]
    longest = max_tokens or model.max_tokens
    limits: dict[Side, int] = {'x': longest, 'y': longest}
    return Embedder(
        encoder, tokenizer, mesh, limits, model.directory.name, origin=origin, dense=dense
    )


def _check_language_model(found: Pretrained) -> None:
    """Raises UserError for a model in which the last token's state does not stand for the next
    word.
    """
    kind = found.config['model_type']
    if not found.shape.get('causal', True):
        raise UserError(
            f'--representation: {found.directory} ({kind}) is no causal language model: it has no '
            f'next word; leave the flag out'
        )
    if found.dense:
        raise UserError(
            f'--representation: {found.directory} has Dense modules behind its pooling, which go '
            f'with its own; leave the flag out'
        )
