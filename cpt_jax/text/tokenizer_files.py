"""Opening the tokenizer of a pretrained directory: five file formats, each with the special tokens
of its directory.

Ids equal those of transformers 5.23. With a sentencepiece model they equal those of sentencepiece
itself, with which LLaMA was trained. transformers instead rebuilds a BPE from the tokens in the
order of their ids, not of their scores, which differs where spaces meet:
  - LLaMA's tokens for several spaces have the lowest scores. sentencepiece encodes 'a  The' as
    a, space, space-The; transformers as a, two spaces, The.
  - sentencepiece puts one more space before every text, also before a text that begins with a space
    (with `legacy`, also before the text that follows a special token).
If tokenizer_config.json has no `add_bos_token`, BOS is prepended, as the documentation of
LlamaTokenizer specifies; its code does not prepend it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    FLAG,
    OBJECT,
    TEXT,
    Allowed,
    allow_null,
    allow_numbers,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.text.byte_level import build_byte_level_json, read_tokenizer_class
from cpt_jax.text.hugging_face_json import HuggingFaceJson, truncates_left
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer, TokenizerModel
from cpt_jax.text.sentencepiece_model import convert_llama2c_tokenizer, read_sentencepiece
from cpt_jax.text.tokenizer import Side
from cpt_jax.text.tokenizer_classes import rebuild_tokenizer_json
from cpt_jax.text.wordpiece import build_wordpiece_json

_TOKEN = allow_null(
    Allowed(
        'a text, or an object with the key content',
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, dict) and isinstance(value.get('content'), str))
        ),
    )
)
# Classes whose files are read without a tokenizer.json. '' is a generic class or none. Subclasses
# such as BertJapaneseTokenizer split words with other programs.
_WORDPIECE_CLASSES = ('', 'BertTokenizer', 'DistilBertTokenizer')
_SENTENCEPIECE_CLASSES = ('', 'LlamaTokenizer', 'CodeLlamaTokenizer', 'GemmaTokenizer')
TOKENIZER_KEYS = {
    'model_max_length': allow_null(allow_numbers(least=1)),
    'tokenizer_class': allow_null(TEXT),
    'add_prefix_space': allow_null(FLAG),
    'add_bos_token': allow_null(FLAG),
    'add_eos_token': allow_null(FLAG),
    'do_lower_case': allow_null(FLAG),
    'strip_accents': allow_null(FLAG),
    'tokenize_chinese_chars': allow_null(FLAG),
    'truncation_side': allow_null(
        Allowed('left or right', lambda value: value in ['left', 'right'])
    ),
    'legacy': allow_null(FLAG),
    'added_tokens_decoder': allow_object(OBJECT),
    **dict.fromkeys([f'{role}_token' for role in ('bos', 'eos', 'unk', 'pad')], _TOKEN),
}


def open_tokenizer(
    directory: Path,
    config: Mapping[str, Any],
    prompts: Mapping[Side, str],
    lower: bool,
    rows: int = 0,
) -> PretrainedTokenizer:
    """Returns the tokenizer of a directory.

    It is read from the first of these that exists: tokenizer.json, vocab.json with merges.txt, a
    sentencepiece model, llama2.c's tok*.bin, BERT's vocab.txt.

    Args:
      directory: directory of the pretrained model.
      config: content of config.json.
      prompts: string put before each text, by side.
      lower: whether texts are lowercased.
      rows: number of rows of the token table; see `PretrainedTokenizer`.

    Raises:
      UserError: no such file exists, or it is damaged or of an unsupported kind.
    """
    tokenizer_config = read_tokenizer_config(directory)
    path = _find_file(directory)
    try:
        model = _read_model(path, config, tokenizer_config)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f'{path}: cannot be read: {str(error).splitlines()[0]}') from None
    return PretrainedTokenizer(
        path.name,
        model,
        prompts,
        lower,
        _find_end_id(config, model.vocab_size),
        _find_bos_ids(config, tokenizer_config, model.vocab_size),
        _find_padding(tokenizer_config),
        rows,
    )


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json; {} if there is none.

    Raises:
      UserError: it is damaged, or a value is not allowed.
    """
    path = directory / 'tokenizer_config.json'
    content = read_json_file(path, optional=True)
    check_values(path, content, TOKENIZER_KEYS)
    return content


def _read_model(
    path: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> TokenizerModel:
    if path.name == 'tokenizer.json':
        data = rebuild_tokenizer_json(path.parent, config, tokenizer_config)
        return HuggingFaceJson(data, truncates_left(data, tokenizer_config))
    if tokenizer_config.get('truncation_side') == 'left':
        raise UserError(
            f'{path.parent}/tokenizer_config.json: truncation_side=left needs a tokenizer.json; '
            f'write one with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    if path.name == 'vocab.txt':
        return _read_wordpiece(path, config, tokenizer_config)
    if path.name == 'vocab.json':
        return HuggingFaceJson(build_byte_level_json(path.parent, config, tokenizer_config))
    if config.get('model_type') in ('xlm-roberta', 'gte'):
        raise UserError(
            f'{path}: XLM-RoBERTa gives other ids to the pieces of this sentencepiece model; write '
            f'a tokenizer.json with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    data = path.read_bytes()
    if path.suffix != '.model':
        data = convert_llama2c_tokenizer(data)
    elif (name := read_tokenizer_class(config, tokenizer_config)) not in _SENTENCEPIECE_CLASSES:
        raise UserError(
            f'{path}: is read for LLaMA and Gemma, not for a {name}; write a tokenizer.json with '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    return read_sentencepiece(path.parent, tokenizer_config, data)


def _read_wordpiece(
    path: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> TokenizerModel:
    """Reads BERT's vocab.txt. Raises UserError for another family or class, such as MPNet's."""
    has_class = read_tokenizer_class(config, tokenizer_config) in _WORDPIECE_CLASSES
    if config.get('model_type') not in ('bert', 'distilbert', 'nomic_bert') or not has_class:
        raise UserError(
            f'{path}: is read for BERT, DistilBERT and NomicBERT only; write a tokenizer.json with '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    return HuggingFaceJson(build_wordpiece_json(path.parent, tokenizer_config))


def _find_end_id(config: Mapping[str, Any], vocab_size: int) -> int:
    """Returns the first valid id of EOS, BOS and padding in config.json; 0 if there is none."""
    for key in ('eos_token_id', 'bos_token_id', 'pad_token_id'):
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and 0 <= value < vocab_size:
            return value
    return 0


def _find_bos_ids(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], vocab_size: int
) -> list[int]:
    """Returns BOS from config.json, or [] if it is invalid or tokenizer_config.json disables it (as
    in Qwen).
    """
    if tokenizer_config.get('add_bos_token') is False:
        return []
    if tokenizer_config.get('bos_token', '') is None:
        return []
    bos_id = config.get('bos_token_id')
    return [bos_id] if isinstance(bos_id, int) and 0 <= bos_id < vocab_size else []


def _find_padding(tokenizer_config: Mapping[str, Any]) -> str:
    token = tokenizer_config.get('pad_token')
    # Older versions of transformers write a dict of the token's properties.
    return token['content'] if isinstance(token, dict) else token or ''


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory contains the file of a tokenizer."""
    return bool(_list_files(directory))


def _list_files(directory: Path) -> list[Path]:
    """Returns the files of a directory that have a tokenizer; the first one is read."""
    names = ['tokenizer.json', 'tokenizer.model', 'spiece.model']
    if (directory / 'merges.txt').is_file():
        names.insert(1, 'vocab.json')
    candidates = [directory / name for name in names]
    found = [path for path in candidates if path.is_file()]
    found += sorted(directory.glob('*.model'))
    found += sorted(directory.glob('tok*.bin'))
    return found + sorted(directory.glob('vocab.txt'))


def _find_file(directory: Path) -> Path:
    found = _list_files(directory)
    if not found:
        raise UserError(
            f'{directory}: holds no tokenizer.json, no vocab.json with merges.txt and no '
            f'sentencepiece model (tokenizer.model); write a tokenizer.json with '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    return found[0]
