"""The special and added tokens of a pretrained directory, as transformers reads them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from cpt_jax.storage.json_files import read_json_file


class SpecialTokens(NamedTuple):
    """The special and added tokens of a directory.

    Attributes:
      named: tokens with a role, by the name of the role ('bos_token').
      numbered: tokens that the directory gives an id, by id.
      extra: other tokens that are encoded as one id wherever they occur in a text.
    """

    named: Mapping[str, AddedToken]
    numbered: Mapping[int, AddedToken]
    extra: Sequence[AddedToken]

    def iterate_tokens(self) -> Iterator[tuple[int | None, AddedToken]]:
        """Yields (id, token) of each token once; the id is None if the directory assigns none."""
        yield from sorted(self.numbered.items(), key=lambda item: item[0])
        seen = {token.content for token in self.numbered.values()}
        for token in (*self.named.values(), *self.extra):
            if token.content not in seen:
                seen.add(token.content)
                yield None, token


_ROLES = (
    'bos_token',
    'eos_token',
    'unk_token',
    'sep_token',
    'pad_token',
    'cls_token',
    'mask_token',
)


def read_special_tokens(
    directory: Path, tokenizer_config: Mapping[str, Any], defaults: Mapping[str, str]
) -> SpecialTokens:
    """Returns the special and added tokens of a directory, as transformers reads them.

    They are in tokenizer_config.json, in older directories also in special_tokens_map.json and
    added_tokens.json.

    Args:
      directory: directory of the pretrained model.
      tokenizer_config: content of tokenizer_config.json.
      defaults: content of named tokens, by role, that no file defines.
    """
    given = {**defaults, **tokenizer_config}
    is_older = 'added_tokens_decoder' not in tokenizer_config
    if is_older:
        given |= read_json_file(directory / 'special_tokens_map.json', optional=True)
    named = {part: _make_token(given[part], special=True) for part in _ROLES if given.get(part)}
    listed = given.get('extra_special_tokens') or given.get('additional_special_tokens') or []
    values = listed.values() if isinstance(listed, dict) else listed
    extra = [_make_token(value, special=True) for value in values]
    if is_older:
        special = {token.content for token in (*named.values(), *extra)}
        added = read_json_file(directory / 'added_tokens.json', optional=True)
        numbered = {
            i: AddedToken(content, normalized=content not in special, special=content in special)
            for content, i in added.items()
        }
    else:
        numbered = {
            int(i): _make_token(value)
            for i, value in tokenizer_config['added_tokens_decoder'].items()
        }
    return SpecialTokens(named, numbered, extra)


def _make_token(value: str | Mapping[str, Any], special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special)
    flags = {
        key: value[key] for key in ('single_word', 'lstrip', 'rstrip', 'normalized') if key in value
    }
    return AddedToken(value['content'], special=special or bool(value.get('special')), **flags)
