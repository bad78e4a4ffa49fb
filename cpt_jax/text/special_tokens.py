"""The special and added tokens of a pretrained directory, as transformers reads them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from cpt_jax.storage.json_files import read_json_file


class SpecialTokens(NamedTuple):
    """The special and added tokens of a directory.

    Attributes:
      named: those with a part to play, by its name ('bos_token').
      numbered: those that the directory gives an id.
      extra: others that are one id wherever they stand in a text.
    """

    named: Mapping[str, AddedToken]
    numbered: Mapping[int, AddedToken]
    extra: Sequence[AddedToken]

    def entries(self) -> Iterator[tuple[int | None, AddedToken]]:
        """(id, token) of each; None where the directory gives it no id."""
        yield from sorted(self.numbered.items(), key=lambda item: item[0])
        seen = {token.content for token in self.numbered.values()}
        for token in (*self.named.values(), *self.extra):
            if token.content not in seen:
                seen.add(token.content)
                yield None, token


_PARTS = (
    'bos_token',
    'eos_token',
    'unk_token',
    'sep_token',
    'pad_token',
    'cls_token',
    'mask_token',
)


def read_special_tokens(
    directory: Path, own: Mapping[str, Any], defaults: Mapping[str, str]
) -> SpecialTokens:
    """As transformers reads them: all in tokenizer_config.json, or in an older directory
    special_tokens_map.json and added_tokens.json.

    Args:
      own: tokenizer_config.json.
      defaults: the named ones where neither file says anything.
    """
    given = {**defaults, **own}
    older = 'added_tokens_decoder' not in own
    if older:
        given |= read_json_file(directory / 'special_tokens_map.json', optional=True)
    named = {part: _token(given[part], special=True) for part in _PARTS if given.get(part)}
    listed = given.get('extra_special_tokens') or given.get('additional_special_tokens') or []
    extra = [
        _token(value, special=True)
        for value in (listed.values() if isinstance(listed, dict) else listed)
    ]
    if older:
        special = {token.content for token in (*named.values(), *extra)}
        added = read_json_file(directory / 'added_tokens.json', optional=True)
        numbered = {
            i: AddedToken(content, normalized=content not in special, special=content in special)
            for content, i in added.items()
        }
    else:
        numbered = {int(i): _token(value) for i, value in own['added_tokens_decoder'].items()}
    return SpecialTokens(named, numbered, extra)


def _token(value: str | Mapping[str, Any], special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special)
    flags = {
        key: value[key] for key in ('single_word', 'lstrip', 'rstrip', 'normalized') if key in value
    }
    return AddedToken(value['content'], special=special or bool(value.get('special')), **flags)
