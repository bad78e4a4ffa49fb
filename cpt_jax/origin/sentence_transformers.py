"""The files of sentence-transformers in a model's directory: modules, prompts, lengths and
similarity.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.model.pooling import POOLINGS
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    FLAG,
    OBJECT,
    TEXT,
    allow_integers,
    allow_null,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.text.tokenizer import Side

MODULES = 'modules.json'
CONFIG = 'config_sentence_transformers.json'
SIMILARITIES = ('auto', 'cosine', 'dot')  # the values of --similarity
# Names of poolings in EncoderConfig, by the names in sentence-transformers.
_BY_MODE = {pooling.mode: name for name, pooling in POOLINGS.items()}
# Keys of sentence-transformers before version 5.4, one of which is true -> name since then.
_LEGACY_FLAGS = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_lasttoken': 'lasttoken',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
}
# The mean of the states times the square root of their number: the unit vector is the same.
_SCALED_MEAN = 'mean_sqrt_len_tokens'
_KINDS = ('Transformer', 'Pooling', 'Dense', 'Normalize', 'Dropout')
# Names of the file with the maximum length; the first that exists is read. Old versions named it
# after the class of the transformer.
_LENGTH_FILES = tuple(
    f'sentence_{kind}_config.json'
    for kind in ('bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet')
)
# Keys of each side in `prompts` of config_sentence_transformers.json; the first existing one is
# used. E5 calls documents passages.
_PROMPTS: dict[Side, tuple[str, ...]] = {'x': ('query',), 'y': ('document', 'passage', 'corpus')}
_CONFIG_KEYS = {
    'prompts': allow_null(allow_object(allow_null(TEXT))),
    'default_prompt_name': allow_null(TEXT),
    'similarity_fn_name': allow_null(TEXT),
}
_LENGTH = allow_null(allow_integers(1, 10_000_000))
# Maximum lengths of one side, since version 5.4.
_SIDE_LENGTHS: dict[str, Side] = {'query_length': 'x', 'document_length': 'y'}
# Arguments of the classes of transformers, by their names before and since version 5.4, and of each
# call of the tokenizer. They must have no key but _HARMLESS_ARGUMENTS.
_ARGUMENTS = (
    'tokenizer_args',
    'processor_kwargs',
    'config_args',
    'config_kwargs',
    'processing_kwargs',
    'query_expansion',
)
# The first is ignored by sentence-transformers too; padding changes no vector.
_HARMLESS_ARGUMENTS = {'trust_remote_code', 'padding_side'}
SENTENCE_KEYS = {
    'max_seq_length': _LENGTH,
    'do_lower_case': FLAG,
    **dict.fromkeys(_SIDE_LENGTHS, _LENGTH),
    **dict.fromkeys(_ARGUMENTS, allow_null(OBJECT)),
}


@dataclasses.dataclass(frozen=True)
class SentenceFiles:
    """What the files of sentence-transformers configure; all defaults if there are none.

    Attributes:
      directory: directory with modules.json, or of a model without it.
      transformer: directory of the transformer: `directory`, or 0_Transformer in it.
      has_modules: whether there is a modules.json.
      pooling: pooling as in EncoderConfig; '' without a modules.json.
      is_scaled_mean: whether the pooling is mean_sqrt_len_tokens, and `pooling` has only the
        direction of its vectors.
      includes_prompt: whether the states of the prompt's tokens are pooled.
      dense: folder -> config.json of each Dense module, in order.
      is_normalized: whether a module normalizes vectors.
      prompts: string put before each text, by side.
      similarity: 'cosine', 'dot', or another name in sentence-transformers.
      max_tokens: maximum number of tokens of a text; None if no file defines it.
      side_limits: maximum number of tokens by side, which replaces `max_tokens`.
      lower: whether texts are lowercased.
    """

    directory: Path
    transformer: Path
    has_modules: bool
    pooling: str
    is_scaled_mean: bool
    includes_prompt: bool
    dense: Mapping[Path, Mapping[str, Any]]
    is_normalized: bool
    prompts: Mapping[Side, str]
    similarity: str
    max_tokens: int | None
    side_limits: Mapping[Side, int]
    lower: bool


def find_transformer(directory: Path) -> Path:
    """Returns the directory of the transformer: a folder such as 0_Transformer if modules.json
    lists one, else `directory`.

    Raises:
      UserError: modules.json is invalid.
    """
    return dict(_read_modules(directory)).get('Transformer', directory)


def read_sentence_files(directory: Path) -> SentenceFiles:
    """Reads the files of sentence-transformers in a directory.

    Raises:
      UserError: a file is damaged, or needs an unsupported feature.
    """
    modules = _read_modules(directory)
    _check_modules(directory, modules)
    folders = dict(modules)
    transformer = folders.get('Transformer', directory)
    path = directory / CONFIG
    config = read_json_file(path, optional=True)
    check_values(path, config, _CONFIG_KEYS)
    lengths = _read_lengths(transformer)
    pooling = _Pooling('', False, True)
    if modules:
        pooling = _read_pooling(folders['Pooling'] / 'config.json', 'Dense' in folders)
    return SentenceFiles(
        directory=directory,
        transformer=transformer,
        has_modules=bool(modules),
        pooling=pooling.name,
        is_scaled_mean=pooling.is_scaled_mean,
        includes_prompt=pooling.includes_prompt,
        dense={
            folder: read_json_file(folder / 'config.json')
            for kind, folder in modules
            if kind == 'Dense'
        },
        is_normalized='Normalize' in folders,
        prompts=_read_prompts(config),
        similarity=config.get('similarity_fn_name') or 'cosine',
        max_tokens=lengths.get('max_seq_length'),
        side_limits={side: lengths[key] for key, side in _SIDE_LENGTHS.items() if lengths.get(key)},
        lower=bool(lengths.get('do_lower_case', False)),
    )


def resolve_similarity(sentence: SentenceFiles, chosen: str) -> str:
    """Returns how the vectors of a model are compared: 'cosine' or 'dot'.

    Args:
      sentence: files of sentence-transformers, which may name the similarity.
      chosen: 'cosine', 'dot', or 'auto' or '' for the similarity that the files name.

    Raises:
      UserError: the files name another similarity, `chosen` is unknown, or the vectors lack the
        length that a dot product needs.
    """
    if chosen not in ('', *SIMILARITIES):
        raise UserError(f'--similarity {chosen}: choose one of {", ".join(SIMILARITIES)}')
    similarity = sentence.similarity if chosen in ('', 'auto') else chosen
    if similarity not in ('cosine', 'dot'):
        raise UserError(
            f'{sentence.directory}/{CONFIG}: similarity_fn_name={similarity!r} is not '
            f'supported: choose --similarity cosine or dot'
        )
    if similarity == 'dot' and sentence.is_scaled_mean and not sentence.is_normalized:
        raise UserError(
            f'{sentence.directory}/{MODULES}: pooling {_SCALED_MEAN} is not supported with dot '
            f'products, which depend on its scale: choose --similarity cosine'
        )
    return similarity


def _read_modules(directory: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of each module in modules.json; [] if there is no modules.json.

    Raises:
      UserError: modules.json is invalid.
    """
    path = directory / MODULES
    if not path.is_file():
        return []
    given = read_json_file(path, kind=list)
    if not all(_is_module(module) for module in given):
        raise UserError(f'{path}: not a list of modules, each with a type and a path')
    return [(module['type'].rpartition('.')[2], directory / module['path']) for module in given]


def _is_module(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ('type', 'path')
    )


def _check_modules(directory: Path, modules: Sequence[tuple[str, Path]]) -> None:
    """Raises UserError if a module is unsupported or in an unsupported place.

    A Dropout module may be anywhere: it does nothing when texts are embedded.
    """
    kinds = [kind for kind, _ in modules if kind != 'Dropout']
    expected = f'{directory}/{MODULES}: expected a transformer, a pooling and a normalisation, not'
    if modules and (set(kinds) - set(_KINDS) or 'Pooling' not in kinds):
        raise UserError(f'{expected} {", ".join(dict(modules))}')
    if 'Dense' in kinds and (kinds[:2] != ['Transformer', 'Pooling'] or 'Normalize' in kinds[:-1]):
        raise UserError(
            f'{expected} {", ".join(kinds)}; Dense modules may come before the normalisation'
        )


class _Pooling(NamedTuple):
    """The module of the pooling; see the attributes of `SentenceFiles`."""

    name: str
    is_scaled_mean: bool
    includes_prompt: bool


def _read_pooling(path: Path, has_dense: bool) -> _Pooling:
    """Reads the module of the pooling.

    Args:
      path: config.json of the module.
      has_dense: whether a Dense module follows, whose output depends on the scale of its input.

    Raises:
      UserError: the pooling is not supported.
    """
    config = read_json_file(path)
    check_values(path, config, {'include_prompt': FLAG})
    modes = [mode for flag, mode in _LEGACY_FLAGS.items() if config.get(flag)]
    if not modes:
        modes = [config.get('pooling_mode')]
    is_scaled_mean = modes == [_SCALED_MEAN] and not has_dense
    if is_scaled_mean:
        modes = ['mean']
    if len(modes) > 1 or modes[0] not in [*_BY_MODE]:
        raise UserError(
            f'{path}: pooling {modes} is not supported; supported is one of {", ".join(_BY_MODE)}'
        )
    return _Pooling(_BY_MODE[modes[0]], is_scaled_mean, config.get('include_prompt') is not False)


def _read_lengths(transformer: Path) -> dict[str, Any]:
    """Returns the content of sentence_bert_config.json or a file of another name in its place.

    Raises:
      UserError: it has arguments that are not supported.
    """
    paths = [transformer / name for name in _LENGTH_FILES]
    path = next((path for path in paths if path.is_file()), paths[0])
    content = read_json_file(path, optional=True)
    check_values(path, content, SENTENCE_KEYS)
    for key in _ARGUMENTS:
        if given := sorted((content.get(key) or {}).keys() - _HARMLESS_ARGUMENTS):
            raise UserError(
                f'{path}: {key} is not supported (here {", ".join(given)}): write its values into '
                f'the files of the tokenizer or into config.json, and remove the key'
            )
    return content


def _read_prompts(config: Mapping[str, Any]) -> dict[Side, str]:
    """Returns the prompt before the texts of each side."""
    prompts = config.get('prompts') or {}
    default = prompts.get(config.get('default_prompt_name') or '') or ''
    return {
        side: next((prompts[name] for name in names if prompts.get(name) is not None), default)
        for side, names in _PROMPTS.items()
    }
