"""The files of a transformer without pooling and tokenizer: config.json and weights, or GGUF."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.config_keys import CONFIG_KEYS
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import TensorNames
from cpt_jax.model.families.stored_names import find_table_name, rename_tensors
from cpt_jax.model.formats.llama2c import LLAMA2C, Llama2cFile, find_llama2c_file
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import check_values
from cpt_jax.storage.json_files import read_json_file


class TransformerFiles(NamedTuple):
    """A transformer without pooling and tokenizer; see `Pretrained` for the fields."""

    config: Mapping[str, Any]
    family: Family
    files: TensorFiles
    shape: dict[str, Any]
    rows: int


class Architecture(NamedTuple):
    """What config.json describes; see `Pretrained` for the fields."""

    config: Mapping[str, Any]
    family: Family
    shape: dict[str, Any]
    rows: int


def read_architecture(directory: Path) -> Architecture:
    """Reads the config.json of a transformer; its weights are not needed."""
    config = read_json_file(directory / 'config.json')
    check_values(directory / 'config.json', config, CONFIG_KEYS)
    family = _find_family(directory, config)
    _check_is_not_quantized(directory, config)
    return _make_architecture(directory, config, family)


def _make_architecture(directory: Path, config: Mapping[str, Any], family: Family) -> Architecture:
    shape = _read_shape(directory, family, config)
    _make_encoder_config(directory, shape, config['vocab_size'])
    shape |= {'tied': bool(config.get('tie_word_embeddings', family.tied))}
    return Architecture(config, family, shape, config['vocab_size'])


def is_gguf_file(path: Path) -> bool:
    """Whether a path is a file whose name ends in .gguf."""
    return path.suffix == '.gguf' and path.is_file()


def _open_gguf(path: Path) -> TransformerFiles:
    # Imported here because the gguf library takes 0.4 s.
    from cpt_jax.model.formats.gguf_config import read_pooling
    from cpt_jax.model.formats.gguf_file import GgufFile

    files = GgufFile(path)
    config = files.config
    family = find_family(config)
    rows = config['vocab_size']
    try:
        shape = family.shape(config) | _read_direction(config)
        TensorNames(family, files, EncoderConfig(vocab_size=rows, **shape))
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    shape |= {'tied': config['tie_word_embeddings'], **read_pooling(path, files.metadata)}
    return TransformerFiles(config, family, files, shape, rows)


def open_transformer(directory: Path) -> TransformerFiles:
    """Opens the directory or GGUF file of a transformer that is no adapter."""
    if is_gguf_file(directory):
        return _open_gguf(directory)
    path = None if (directory / 'config.json').is_file() else find_llama2c_file(directory)
    files: TensorFiles
    if path:
        files = legacy = Llama2cFile(path)
        config, family, shape, rows = _make_architecture(directory, legacy.config, LLAMA2C)
    else:
        config, family, shape, rows = read_architecture(directory)
        files = open_weight_files(directory)
    encoder_config = EncoderConfig(vocab_size=rows, **shape)
    # Masked language models are tied unless config.json says otherwise (transformers' default).
    is_tied = shape['tied'] or (
        not shape.get('causal', True) and config.get('tie_word_embeddings') is not False
    )
    files = rename_tensors(files, family, encoder_config, is_tied)
    _check_table_rows(directory, family, files, encoder_config)
    return TransformerFiles(config, family, files, shape, rows)


def _find_family(directory: Path, config: Mapping[str, Any]) -> Family:
    try:
        return find_family(config)
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None


def _check_is_not_quantized(directory: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if the weights are quantized, or transformers would quantize them."""
    if quantization := config.get('quantization_config'):
        method = quantization.get('quant_method') if isinstance(quantization, dict) else None
        raise UserError(
            f'{directory}/config.json: quantization_config ({method}) is not supported: save the '
            f'model without quantization; if its weights are not quantized, remove the key'
        )


def _read_shape(directory: Path, family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of EncoderConfig that config.json describes, without those of
    other files.

    Raises:
      UserError: a key is missing, or its value is not supported.
    """
    path = directory / 'config.json'
    try:
        shape = family.shape(config)
        config['vocab_size']  # read by the caller
    except KeyError as error:
        raise UserError(f'{path}: has no {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None
    # Values within objects, such as rope_parameters, which CONFIG_KEYS does not list.
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f'{path}: a value is not of the expected kind ({error})') from None
    return shape | _read_direction(config)


def _read_direction(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the argument of EncoderConfig that config.json sets for bidirectional attention."""
    # transformers writes the first key, other libraries the second.
    if config.get('is_causal') is False or config.get('use_bidirectional_attention'):
        return {'causal': False}
    return {}


def make_bidirectional(model: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `model` section with what its family changes if attention is bidirectional, such as
    the sliding window of Mistral, to which texts are then limited.

    Args:
      model: `model` section of a causal model.
      config: content of its config.json.
    """
    family = find_family(config)
    causal = family.shape(config)
    other = family.shape({**config, 'is_causal': False})
    kept = {key: value for key, value in model.items() if key in other or key not in causal}
    changed = {key: value for key, value in other.items() if causal.get(key) != value}
    return {**kept, **changed, 'causal': False}


def _make_encoder_config(directory: Path, shape: Mapping[str, Any], rows: int) -> EncoderConfig:
    """Returns the architecture. Raises UserError if config.json describes no possible model."""
    path = directory / 'config.json'
    try:
        return EncoderConfig(vocab_size=rows, **shape)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except TypeError as error:  # a null that the family has no default for
        raise UserError(f'{path}: a value is not of the expected kind ({error})') from None


def _check_table_rows(
    directory: Path, family: Family, files: TensorFiles, config: EncoderConfig
) -> None:
    """Raises UserError if config.json describes another size of the token table than the files
    have, before a table of that size is allocated.
    """
    table = find_table_name(family, config)
    names = [prefix + table for prefix in family.prefixes if prefix + table in files.names]
    found = [files.read_shape(name)[0] for name in names]
    if found and found[0] != config.vocab_size:
        raise UserError(
            f'{directory}/config.json: vocab_size={config.vocab_size:,}, but '
            f'{files.describe_location(names[0])} has {found[0]:,} rows: the files belong to '
            f'different models'
        )
