"""When two texts are equal: pairs that share a text give each other no negatives
(loss/candidates.py), and pairs with equal x are held out together (data/rows.py).
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from cpt_jax.data.pairs import compute_content_id
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import Side

# Values of data.equal_texts.
NORMALIZED = 'normalized'
STRIPPED = 'stripped'
EQUALITY_RULES = (NORMALIZED, STRIPPED)
# The rule of a new run. A run that began before data.equal_texts existed keeps STRIPPED.
LATEST_RULE = NORMALIZED
IDS_PER_TEXT = {NORMALIZED: 2, STRIPPED: 1}


def resolve_rule(data: Mapping[str, Any]) -> str:
    """Returns the rule of a config's `data` section; 'auto' is LATEST_RULE."""
    rule = data.get('equal_texts', 'auto')
    return LATEST_RULE if rule == 'auto' else rule


def normalize_text(text: str, fold_case: bool = True) -> str:
    """Returns a text in Unicode's form NFKC, with folded case and single spaces."""
    text = unicodedata.normalize('NFKC', text)
    return ' '.join((text.casefold() if fold_case else text).split())


class TextIdentifier:
    """Computes the int32 ids by which texts are compared; texts are equal if any id agrees.

    With the rule 'normalized', a text has two ids. They depend neither on its side nor on its
    delimiters, special tokens and prompt:

      0. its whole text, normalized; case is folded only if the tokenizer folds it;
      1. its tokens once truncated, which are all that the model reads. They find texts that differ
         only in what the tokenizer drops, or only behind their first `max_tokens` tokens.

    With 'stripped', the rule of earlier runs, a text has only one: its text without white space at
    its ends.

    Attributes:
      ids_per_text: number of ids of a text.
    """

    def __init__(self, rule: str, tokenizer: TextTokenizer, max_tokens: Mapping[Side, int]):
        """Prepares a rule.

        Args:
          rule: one of EQUALITY_RULES.
          tokenizer: tokenizer of the texts.
          max_tokens: number of ids to which texts are truncated, by side.
        """
        self.ids_per_text = IDS_PER_TEXT[rule]
        self._rule = rule
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._folds_case = rule == NORMALIZED and does_fold_case(
            tokenizer, max(max_tokens.values())
        )
        self._added: dict[tuple[Side, str], list[int]] = {}

    def identify(
        self,
        texts: Sequence[str],
        tokens: Sequence[np.ndarray],
        side: Side,
        prompts: Sequence[str],
    ) -> Iterator[list[int]]:
        """Yields the ids of each text, 1 to 2**31 - 1.

        Args:
          texts: texts as the tokenizer got them.
          tokens: their ids from the tokenizer, int32.
          side: side of the texts.
          prompts: the prompt with which each text begins; '' if there is none.
        """
        if self._rule == STRIPPED:
            yield from ([compute_content_id(text)] for text in texts)
            return
        for text, text_tokens, prompt in zip(texts, tokens, prompts, strict=True):
            whole = normalize_text(text.removeprefix(prompt), self._folds_case)
            own = remove_added_tokens(text_tokens, self._encode_empty(side, prompt))
            yield [compute_content_id(whole), hash_tokens(own)]

    def _encode_empty(self, side: Side, prompt: str) -> list[int]:
        """Returns the ids of an empty text: all that is put around texts."""
        key = side, prompt
        if key not in self._added:
            (added,) = self._tokenizer.encode([prompt], side, self._max_tokens[side])
            self._added[key] = added.tolist()
        return self._added[key]


def does_fold_case(tokenizer: TextTokenizer, max_tokens: int) -> bool:
    """Returns whether a tokenizer gives capitals the ids of small letters.

    Args:
      tokenizer: a tokenizer.
      max_tokens: number of ids to which texts are truncated.
    """
    upper, lower = tokenizer.encode(['ABC', 'abc'], 'x', max_tokens)
    return upper.tolist() == lower.tolist()


def remove_added_tokens(tokens: np.ndarray, added: Sequence[int]) -> np.ndarray:
    """Returns the ids of a text without those that are put around it.

    These are the longest beginning and the longest end that the ids share with those of an empty
    text. A prompt's last id may differ from the prompt's own, as it may merge with the text.

    Args:
      tokens: ids of a text with all that is put around it.
      added: ids of an empty text with the same around it.
    """
    most = min(len(tokens), len(added))
    start = _count_common(tokens[:most].tolist(), added)
    end = _count_common(tokens[len(tokens) - most + start :][::-1].tolist(), added[::-1])
    return tokens[start : len(tokens) - end]


def _count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the number of elements up to the first one that differs."""
    common = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        common += 1
    return common


def hash_tokens(tokens: np.ndarray) -> int:
    """Returns an id, 1 to 2**31 - 1, of int32 token ids."""
    digest = blake2b(tokens.tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, 'little') % (2**31 - 1) + 1


def count_repeated_texts(ids_NxZ: np.ndarray) -> int:
    """Returns how many of the N texts have the same tokens, once truncated, as another."""
    _, counts = np.unique(ids_NxZ[:, 1], return_counts=True)
    return int(counts[counts > 1].sum())


def compute_masked_share(ids_PxTxZ: np.ndarray) -> float:
    """Returns the fraction of the P (P - 1) ordered pairs of pairs in which the y of the second is
    no negative of the x of the first: they share an x or a y, or x has this y in another pair.
    """
    pairs = len(ids_PxTxZ)
    texts, positives = np.split(ids_PxTxZ, [IDS_PER_TEXT[NORMALIZED]], axis=-1)
    masked_PxP = (positives[:, None, 0] == positives[:, 1]).any(-1)
    for left in (0, 1):
        for right in (0, 1):
            masked_PxP |= (texts[:, None, left] == texts[:, right]).any(-1)
    np.fill_diagonal(masked_PxP, False)
    return float(masked_PxP.sum() / max(pairs * (pairs - 1), 1))
