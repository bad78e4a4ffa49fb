"""Loads the embedder of a model reference: a run or a pretrained directory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from cpt_jax.embed.embedder import Embedder, describe_settings
from cpt_jax.embed.summary import summarize_embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.origin.earlier_run import EarlierRun, find_run, load_intact
from cpt_jax.origin.frozen_base import load_adapted
from cpt_jax.origin.pretrained import Pretrained, list_model_directories
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.origin.weights_fingerprint import fingerprint_weights
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.prompt_template import (
    OWN_REPRESENTATION,
    Representation,
    check_begin_token,
    parse_prompt_section,
)
from cpt_jax.text.prompt_tokenizer import PromptTokenizer, TextTokenizer
from cpt_jax.text.tokenizer import SIDES, Side


def load_embedder(
    reference: str,
    *,
    pooling: str = '',
    dtype: str = '',
    max_tokens: int = 0,
    representation: Representation = OWN_REPRESENTATION,
    fsdp: int = 1,
    base: str = '',
    similarity: str = '',
    begin_token: str = '',
    dimensions: int = 0,
) -> Embedder:
    """Loads a model for embedding onto all devices.

    Args:
      reference: directory of a run (latest checkpoint), `run@step`, or directory of a pretrained
        model.
      pooling: pooling of a pretrained directory whose files do not define it; see
        `open_pretrained`. Default '': defined by the model.
      dtype: dtype of activations: 'auto', 'float32' or 'bfloat16'. Default '': the run's config, or
        'auto' for a pretrained model.
      max_tokens: maximum number of tokens of a text, including delimiters, special tokens or
        template. Default 0: defined by the model.
      representation: template and pooling, for a causal language model or a run that was trained
        with a template.
      fsdp: number of devices over which one copy of the parameters is sharded.
      base: where the base of a LoRA run is now. Default '': where it was in training.
      similarity: how vectors of a pretrained model are compared: 'cosine' normalizes them, 'dot'
        leaves them as the model makes them. Default '' or 'auto': defined by the model.
      begin_token: whether a text in a template begins with the special tokens that the tokenizer of
        a pretrained model itself puts there ('tokenizer') or, if there are none, with the model's
        BOS ('always'). Default '' or 'auto': 'tokenizer'.
      dimensions: number of dimensions to keep of each vector, which is then normalized again.
        Default 0: all.

    Returns:
      The embedder, with parameters on the devices.

    Raises:
      UserError: the run or checkpoint does not exist or cannot be read, it defines its own pooling,
        the representation does not fit the model, or `begin_token` is unknown or needs a BOS that
        the model lacks.
    """
    if pooling and not representation.is_own:
        raise UserError(
            f'--pooling {pooling}: a --representation or --template has its own pooling; remove '
            f'--pooling'
        )
    if fsdp > 1 and jax.device_count() % fsdp:
        raise UserError(
            f'--fsdp {fsdp}: the number of devices, {jax.device_count():,}, is not a multiple of it'
        )
    if begin_token:
        check_begin_token(begin_token, '--begin_token')
    mesh = make_mesh(fsdp=fsdp)
    if begin_token not in ('', 'auto') and representation.is_own:
        raise UserError(
            f'--begin_token {begin_token}: only for texts in a template; give --representation, or '
            f'remove --begin_token'
        )
    model = resolve_model(reference, '--model', pooling, base, similarity)
    if isinstance(model, Pretrained):
        begin_ids = model.tokenizer.find_begin_ids(begin_token or 'tokenizer')
        embedder = _load_pretrained(
            model, dtype or 'auto', max_tokens, representation, begin_ids, mesh
        )
        return embedder.with_dimensions(dimensions) if dimensions else embedder
    _check_is_run_default('pooling', pooling, reference)
    _check_is_run_default('similarity', similarity, reference)
    _check_is_run_default('begin_token', begin_token, reference)

    def load(run: EarlierRun) -> Embedder:
        return _load_run(run, _read_run_setup(run, dtype, max_tokens, representation), mesh)

    embedder = load_intact(model, load)
    return embedder.with_dimensions(dimensions) if dimensions else embedder


def _check_is_run_default(flag: str, value: str, reference: str) -> None:
    """Raises UserError for a flag that is only for pretrained models."""
    if value not in ('', 'auto'):
        name = flag.replace('_', ' ')
        raise UserError(
            f'--{flag} {value}: {reference} is a run, which has its own {name}; remove --{flag}'
        )


def read_settings(
    reference: str, representation: Representation = OWN_REPRESENTATION, dimensions: int = 0
) -> dict[str, Any]:
    """Returns the `settings` of the embedder that `load_embedder` makes from a run, without reading
    its parameters.

    Args:
      reference: directory of a run (latest checkpoint), or `run@step`.
      representation: template and pooling; see `load_embedder`.
      dimensions: number of dimensions to keep; see `load_embedder`.

    Raises:
      UserError: the checkpoint does not exist or is damaged.
    """
    run = find_run(reference, '--model')
    setup = _read_run_setup(run, '', 0, representation)
    settings = describe_settings(setup.encoder_config, setup.tokenizer, setup.limits, setup.origin)
    return settings | ({'dimensions': dimensions} if dimensions else {})


class _RunSetup(NamedTuple):
    """Everything that the embedder of a run needs except its parameters.

    Attributes:
      encoder_config: architecture and settings of the encoder.
      tokenizer: the run's tokenizer, with a template if there is one.
      limits: maximum number of tokens of a text, by side.
      origin: origin of the parameters, as plain values for `settings`.
    """

    encoder_config: EncoderConfig
    tokenizer: TextTokenizer
    limits: dict[Side, int]
    origin: dict[str, Any]


def _load_run(run: EarlierRun, setup: _RunSetup, mesh: jax.sharding.Mesh) -> Embedder:
    config = setup.encoder_config
    config.check_mesh(mesh)
    if run.provenance.has_adapters:
        encoder = load_adapted(run, config, mesh, setup.tokenizer.added_ids)
    else:
        encoder = run.load_encoder(config, mesh)
    embedder = Embedder(
        encoder,
        setup.tokenizer,
        mesh,
        setup.limits,
        run.name,
        run.run_dir.path,
        setup.origin,
        run.load_dense(config, mesh),
    )
    embedder.summary = summarize_embedder(embedder, setup.tokenizer)
    return embedder


def _read_run_setup(
    run: EarlierRun, dtype: str, max_tokens: int, representation: Representation
) -> _RunSetup:
    if run.is_language_model and representation.is_own:
        raise UserError(
            f'--model {run.reference}: a language model (objective=lm), whose states were not '
            'trained to be vectors: train contrastively from it (launch/train.py --config CONFIG '
            f'--config.init_from={run.reference}), or give --representation prompteol'
        )
    config = run.provenance.config
    tokenizer = _wrap_in_template(run, representation)
    # The run's own choices were for the machine that it was trained on.
    overrides = {'attention': 'auto', 'layer_loop': 'auto'}
    if dtype:
        overrides['dtype'] = dtype
    if not representation.is_own:
        overrides['pooling'] = representation.pooling
    encoder_config = run.encoder_config(run.get_vocab_size(tokenizer), **overrides)
    encoder_config = encoder_config.resolve_for(jax.devices()[0])
    limits: dict[Side, int] = {
        'x': max_tokens or config['data']['max_tokens_x'],
        'y': max_tokens or config['data']['max_tokens_y'],
    }
    # With a template, the run's limits do not apply: training may truncate texts on purpose.
    if isinstance(tokenizer, PromptTokenizer):
        limits = dict.fromkeys(limits, max_tokens or encoder_config.max_length)
    return _RunSetup(encoder_config, tokenizer, limits, _describe_origin(run))


def _describe_origin(run: EarlierRun) -> dict[str, Any]:
    """Returns which step, code and data a run's parameters come from, for `settings`."""
    provenance = run.provenance
    origin = {
        'step': run.step,
        'saved': run.saved,
        'code': provenance.code,
        'trained_on': provenance.config['data']['sources'],
    }
    if provenance.cleaned:  # otherwise nothing is known, as of earlier runs
        origin['cleaned'] = {
            'sources': provenance.cleaned,
            'from_scratch': not provenance.config.get('init_from'),
        }
    if provenance.base:
        base = {'path': provenance.base.path, 'fingerprint': provenance.base.fingerprint}
        origin |= {'lora': provenance.config['lora'], 'base': base}
    return origin


def _wrap_in_template(run: EarlierRun, representation: Representation) -> TextTokenizer:
    """Returns the run's tokenizer, with the template of the representation or, if it
    has none, of the run."""
    own_prompt = parse_prompt_section(run.provenance.config['prompt'])
    tokenizer = run.load_tokenizer()
    if representation.is_own and not own_prompt:
        if representation.demonstrations:
            raise UserError(
                f'--demonstration: {run.reference} was trained without a template, so there is '
                f'none for demonstrations; remove --demonstration'
            )
        return tokenizer
    if not own_prompt and not run.is_language_model:
        raise UserError(
            f'--representation: {run.reference} was trained without a template; remove '
            f'--representation and --template'
        )
    prompt = representation.make_prompt(own_prompt.template if own_prompt else '')
    return PromptTokenizer(tokenizer, prompt, run.bos_ids or ())


def _load_pretrained(
    model: Pretrained,
    dtype: str,
    max_tokens: int,
    representation: Representation,
    begin_ids: Sequence[int],
    mesh: jax.sharding.Mesh,
) -> Embedder:
    """Returns the embedder of a pretrained model, with its own prompts and pooling or those of a
    representation; weights keep the dtype of their files.
    """
    tokenizer: TextTokenizer = model.tokenizer
    arguments = dict(model.shape)
    if representation.is_own and representation.demonstrations:
        raise UserError(
            '--demonstration: needs a template; give --representation prompteol or --template'
        )
    if not representation.is_own:
        _check_language_model(model)
        prompt = representation.make_prompt()
        tokenizer = PromptTokenizer(model.tokenizer, prompt, begin_ids)
        arguments['pooling'] = representation.pooling
    config = EncoderConfig(vocab_size=model.rows, dtype=dtype, **arguments)
    config = config.resolve_for(mesh.devices.flat[0])
    config.check_mesh(mesh)
    encoder = model.load_encoder(config, mesh)
    dense = model.load_dense(mesh)
    origin: dict[str, Any] = {'trained_on': {}}
    if dense:
        origin['dense'] = [list(layer.dense_weight[...].shape[::-1]) for layer in dense]
    if model.similarity == 'dot':
        origin['similarity'] = 'dot'
    limits = dict.fromkeys(SIDES, max_tokens) if max_tokens else dict(model.limits)
    unpooled: dict[Side, int] = {}
    if not model.includes_prompt and representation.is_own and config.pooling != 'eos':
        unpooled = {side: model.tokenizer.count_prompt_ids(side) for side in SIDES}
        origin['unpooled_prompt'] = unpooled
    embedder = Embedder(
        encoder,
        tokenizer,
        mesh,
        limits,
        model.directory.name,
        origin=origin,
        dense=dense,
        unpooled=unpooled,
        normalized=model.similarity == 'cosine' or model.is_normalized,
    )
    embedder.summary = summarize_embedder(embedder, tokenizer, model)
    return embedder


def _check_language_model(model: Pretrained) -> None:
    """Raises UserError if the last token's state does not predict the next word."""
    kind = model.config['model_type']
    if not model.shape.get('causal', True):
        raise UserError(
            f'--representation: {model.directory} ({kind}) is not a causal language model, so it '
            f'predicts no next word; remove --representation'
        )
    if model.dense:
        raise UserError(
            f'--representation: {model.directory} has Dense modules, which were trained for its '
            f'own pooling; remove --representation'
        )


def add_weights_fingerprint(embedder: Embedder, reference: str) -> None:
    """Adds the digest of a pretrained model's files to the settings of its embedder.

    The name of its directory does not identify it. A run's checkpoint is identified by the time at
    which it was saved, so its settings stay as they are.

    Args:
      embedder: the embedder.
      reference: model reference from which it was loaded.
    """
    if not embedder.workdir:
        embedder.settings['weights'] = fingerprint_weights(*list_model_directories(reference))
