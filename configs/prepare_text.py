r"""Pairs of neighbouring pieces of plain text and Markdown, for launch/prepare.py.

Example:
  python launch/prepare.py --config configs/prepare_text.py --output data/pairs \
      --config.sources.text.path=my/notes
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    # Name of each source -> its keys: reader and pairs (names in cpt_jax/prepare/registry.py), path
    # (a file, a folder or a pattern, local or gs://), and the arguments of the two functions.
    c.sources = ConfigDict()
    c.sources.text = ConfigDict()
    # text | jsonl | parquet | csv | tfds | web | sources | nli | dpr | beir
    c.sources.text.reader = 'text'
    c.sources.text.path = 'data/text'
    # Regular expression. A line with a match begins a new document; '': a file is one document. A
    # batch has at most one pair of a document, so long files need a separator.
    c.sources.text.separator = ''
    c.sources.text.pairs = 'neighbours'  # neighbours | fields | functions | codesearchnet
    # Maximum length of a piece, in characters. 1,000 characters of English are about 250 tokens.
    c.sources.text.piece_characters = 1000
    # Minimum length of a document's last piece; a shorter one is dropped.
    c.sources.text.min_characters = 80
    # Maximum length in tokens of the tokenizer below, instead of characters; 0: in characters.
    c.sources.text.piece_tokens = 0
    c.sources.text.min_tokens = 20  # as min_characters, for piece_tokens

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ''  # file or directory of the tokenizer that counts piece_tokens

    c.filters = ConfigDict()
    c.filters.min_characters = 1  # shorter documents are dropped
    c.filters.max_characters = 100_000_000  # longer documents are dropped
    # Languages of documents to keep, as ISO 639-1 codes such as ('en', 'de'); (): all.
    c.filters.languages = ()
    c.filters.min_language_probability = 0.5  # minimum probability of the language
    # Drops documents that look like no prose, by the rules of Gopher and C4 that need no word list.
    c.filters.quality = False

    c.duplicates = ConfigDict()
    # Removes documents with the same words as an earlier one, also of another source.
    c.duplicates.exact = True
    # Removes near duplicates too (MinHash), with the minimum similarity below, from 0.5 to 1.
    c.duplicates.near = False
    c.duplicates.near_similarity = 0.6

    c.decontamination = ConfigDict()
    # Folder with the test sets whose texts are removed, as --data_dir, which replaces it; '': none.
    c.decontamination.data_dir = ''
    # Whether relevant documents of retrieval sets, and functions, count as test texts.
    c.decontamination.documents = True

    c.consistency = ConfigDict()
    # Model reference: keeps the pairs whose y this model ranks among the `top_k` best for x, in a
    # random sample of y; '': no filter.
    c.consistency.model = ''
    c.consistency.top_k = 2  # largest rank of a pair that stays
    c.consistency.sample = 100_000  # number of sampled y

    c.output = ConfigDict()
    c.output.holdout = 0.01  # fraction of the documents that is in the split `test`
    # Fields of the documents to store with each pair, such as ('license',).
    c.output.fields = ()
    # Megabytes of input per shard; 0: a thousandth of the input, from 4 to 256.
    c.output.shard_mb = 0.0
    # Maximum fraction of records that cannot be read, above which the program stops.
    c.output.max_bad_share = 0.001
    return c
