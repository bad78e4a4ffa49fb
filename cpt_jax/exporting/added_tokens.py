"""Added tokens of a tokenizer.json whose texts are stripped by its normalizer.

Hugging Face tokenizers look for added tokens before they normalize, and then normalize each part
between two of them. A normalizer that strips white space from the ends of a text would also strip
it around every added token within the text. In Gemma, line breaks are added tokens.
"""

from typing import Any

from cpt_jax.text.tokenizer import WHITESPACE

# Supplementary Private Use Area A.
_FIRST_PRIVATE = 0xF0000
# Normalizers that change the content of a token as they change the same characters in a text.
_SIMPLE_NORMALIZERS = ('Replace', 'NFC', 'Sequence')


def match_after_normalization(content: dict[str, Any]) -> None:
    """Makes added tokens match the normalized text, in place, where this gives the same ids.

    A token of white space would itself be stripped, so white space that always is an added token is
    replaced by private characters: in the normalizer, in the vocabulary and in the merges.

    Args:
      content: content of a tokenizer.json without special tokens.
    """
    tokens = content['added_tokens']
    vocabulary = content['model']['vocab']
    contents = {token['content'] for token in tokens}
    stripped = {end for text in contents for end in (text[:1], text[-1:]) if end in WHITESPACE}
    if (
        not tokens
        or not isinstance(vocabulary, dict)
        or not _is_simple(content['normalizer'])
        or not stripped <= contents
    ):
        return
    used = set(''.join(vocabulary))
    unused = (chr(code) for code in range(_FIRST_PRIVATE, 0x110000) if chr(code) not in used)
    private = {character: next(unused) for character in sorted(stripped)}
    table = str.maketrans(private)
    model = content['model']
    model['vocab'] = {token.translate(table): i for token, i in vocabulary.items()}
    if 'merges' in model:
        model['merges'] = [
            merge.translate(table)
            if isinstance(merge, str)
            else [part.translate(table) for part in merge]
            for merge in model['merges']
        ]
    content['added_tokens'] = [
        token | {'content': token['content'].translate(table), 'normalized': True}
        for token in tokens
    ]
    replacements = [
        {'type': 'Replace', 'pattern': {'String': character}, 'content': other}
        for character, other in private.items()
    ]
    if content['normalizer']:
        replacements.append(content['normalizer'])
    if replacements:
        content['normalizer'] = {'type': 'Sequence', 'normalizers': replacements}


def _is_simple(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    return normalizer['type'] in _SIMPLE_NORMALIZERS and all(
        map(_is_simple, normalizer.get('normalizers', ()))
    )
