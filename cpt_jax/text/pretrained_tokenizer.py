"""The tokenizers of pretrained directories: four forms of file behind one face, each with the
special tokens of its directory.

Their ids are those of transformers 5.23, and with a sentencepiece model those of sentencepiece
itself, which LLaMA was trained with. transformers makes a BPE of the pieces, in the order of their
ids and not of their scores, which differs where spaces meet:
  - LLaMA's pieces of several spaces have the lowest score of all: 'a  The' is a, space, space-The;
    there it is a, two spaces, The;
  - a text that begins with a space has one more before it, as every text does (with `legacy`, what
    stands behind a special token too).
Where tokenizer_config.json has no `add_bos_token`, texts begin with it, as the documentation of
LlamaTokenizer says; its code adds none.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.text.byte_level import byte_level_json
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.sentencepiece_model import model_of_scores, read_sentencepiece
from cpt_jax.text.tokenizer import Side


class _Model(Protocol):
    """A tokenizer with its special tokens: what differs between the forms.

    Attributes:
      file: name and content of the file of the same tokenizer without them, as
        cpt_jax.text.tokenizer reads it.
      identity: bytes that differ when any text could get other ids.
      vocab_size: number of ids.
    """

    file: tuple[str, bytes]
    identity: bytes
    vocab_size: int

    @property
    def before(self) -> Sequence[int]:
        """The special tokens in front of each text."""

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]: ...

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Without special tokens around them."""

    def decode(self, ids: Sequence[int]) -> str: ...


class OwnTokenizer:
    """A pretrained model's own tokenizer: its special tokens around each text, its prompt before
    it.

    Attributes:
      source: the name of the file that it comes from.
      vocab_size: number of ids.
      prompts: what stands before the texts of each side.
      begin: ids that begin a text for a language model, at most once: what the tokenizer itself
        puts there, or else the model's.
    """

    def __init__(
        self,
        source: str,
        model: _Model,
        prompts: Mapping[Side, str],
        lower: bool,
        end: int,
        begin: Sequence[int] = (),
    ):
        """`end`: the id of the end of a text; it stands for a text without tokens, which has no
        state to take a vector from. `begin`: the beginning of a text by config.json, for where the
        tokenizer itself puts none.
        """
        self._model, self._lower, self.begin = model, lower, tuple(model.before or begin)
        self._nothing = [] if model.encode([''], 10)[0] else [end]
        self.source, self.prompts, self.vocab_size = source, dict(prompts), model.vocab_size

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of a file for `tokenizer_from_file`: the same pieces, without special
        tokens and prompts.
        """
        return self._model.file

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ when any text could get other ids."""
        around = self.prompts, self._lower, *self._nothing
        return hashlib.blake2b(
            self._model.identity + repr(around).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What stands around a text, for results."""
        return {'prompts': self.prompts, 'special_tokens': "the tokenizer's own"}

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Ids of each text with its prompt, cut so that the special tokens fit: at least one, at
        most `max_tokens`, int32.
        """
        prompted = [self.prompts[side] + (text.lower() if self._lower else text) for text in texts]
        return [
            np.array(ids or self._nothing, np.int32)
            for ids in self._model.encode(prompted, max_tokens)
        ]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone: no special tokens around it, no prompt before it."""
        return self._model.pieces([text.lower() for text in texts] if self._lower else texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids of `pieces`."""
        return self._model.decode(ids)


def open_tokenizer(
    directory: Path, config: Mapping[str, Any], prompts: Mapping[Side, str], lower: bool
) -> OwnTokenizer:
    """The tokenizer of a directory: tokenizer.json, or else vocab.json with merges.txt, a
    sentencepiece model, or llama2.c's tok*.bin.

    Args:
      config: of config.json.
      prompts, lower: what stands before the texts of each side, and whether they are lowered.

    Raises:
      UserError: there is none of them, or it is damaged, or of a kind that we do not have.
    """
    own = read_json_file(directory / 'tokenizer_config.json', optional=True)
    path = _file(directory)
    try:
        match path.name:
            case 'tokenizer.json':
                model: _Model = HuggingFaceJson(path.read_bytes())
            case 'vocab.json':
                model = HuggingFaceJson(byte_level_json(directory, config, own))
            case _:
                data = path.read_bytes()
                proto = data if path.suffix == '.model' else model_of_scores(data)
                model = read_sentencepiece(directory, own, proto)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f'{path}: cannot be read: {str(error).splitlines()[0]}') from None
    return OwnTokenizer(
        path.name,
        model,
        prompts,
        lower,
        _end(config, model.vocab_size),
        _begin(config, own, model.vocab_size),
    )


def _end(config: Mapping[str, Any], ids: int) -> int:
    """The id of the end of a text, or the first that config.json gives; 0 where it gives none that
    the tokenizer has.
    """
    given = [config.get(key) for key in ('eos_token_id', 'bos_token_id', 'pad_token_id')]
    numbers = [value[0] if isinstance(value, list) and value else value for value in given]
    return next((number for number in numbers if isinstance(number, int) and 0 <= number < ids), 0)


def _begin(config: Mapping[str, Any], own: Mapping[str, Any], ids: int) -> list[int]:
    """The id of the beginning of a text by config.json, unless tokenizer_config.json says that
    texts have none (Qwen).
    """
    number = config.get('bos_token_id')
    none = own.get('add_bos_token') is False or own.get('bos_token', '') is None
    return [number] if isinstance(number, int) and 0 <= number < ids and not none else []


def _file(directory: Path) -> Path:
    names = [
        'tokenizer.json',
        *(['vocab.json'] if (directory / 'merges.txt').is_file() else []),
        'tokenizer.model',
        'spiece.model',
    ]
    given = [directory / name for name in names if (directory / name).is_file()]
    found = [*given, *sorted(directory.glob('*.model')), *sorted(directory.glob('tok*.bin'))]
    if not found:
        known = (
            'tokenizer.json, no vocab.json with merges.txt, and no sentencepiece model '
            '(tokenizer.model)'
        )
        raise UserError(
            f'{directory}: holds no {known}; '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one'
        )
    return found[0]
