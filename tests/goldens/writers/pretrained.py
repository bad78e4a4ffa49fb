"""Golden `pretrained`: directories of sentence-transformers and transformers, and their vectors."""

import string
import tempfile
from pathlib import Path

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers

from tests.conftest import WORDS, sentences
from tests.goldens.golden import Golden, capture, restore
from tests.origin.test_pretrained import PROMPTS, TEXT, TEXTS, write_legacy

modules = sentence_transformers.sentence_transformer.modules
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def make_bert_tokenizer() -> tokenizers.Tokenizer:
    """Returns a WordPiece tokenizer as in BERT: lower case, [CLS] and [SEP] around a text."""
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    letters = [*string.ascii_lowercase]
    # Not trained: among equally frequent pieces, the choice of training is not deterministic.
    pieces = [*special, *letters, *(f'##{letter}' for letter in letters), *WORDS, '##er', '##ing']
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]'))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    return made


def make_gpt_tokenizer() -> tokenizers.Tokenizer:
    """Returns a byte-level BPE tokenizer with an end-of-text token after each text."""
    made = train_byte_level(['<end>'])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A <end>', special_tokens=[('<end>', 0)]
    )
    return made


def make_roberta_tokenizer() -> tokenizers.Tokenizer:
    """Returns a byte-level BPE tokenizer with RoBERTa's special tokens around each text."""
    made = train_byte_level(['<s>', '<pad>', '</s>'])
    made.post_processor = tokenizers.processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
    return made


def train_byte_level(special: list[str]) -> tokenizers.Tokenizer:
    """Returns a byte-level BPE tokenizer whose first ids are the special tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {'initial_alphabet': alphabet, 'special_tokens': special, 'show_progress': False}
    made.train_from_iterator(
        sentences(200), tokenizers.trainers.BpeTrainer(vocab_size=320, **options)
    )
    return made


SIZES = {
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'max_position_embeddings': 64,
}
QWEN = SIZES | {'num_key_value_heads': 2, 'use_sliding_window': False}
GEMMA = SIZES | {
    'num_key_value_heads': 2, 'head_dim': 10, 'sliding_window': 9, 'sliding_window_pattern': 2,
    'use_bidirectional_attention': True,
}  # fmt: skip
KINDS = {
    'bert': ('Bert', SIZES, make_bert_tokenizer, '[PAD]'),
    'roberta': ('Roberta', SIZES, make_roberta_tokenizer, '<pad>'),
    'qwen3': ('Qwen3', QWEN, make_gpt_tokenizer, '<end>'),
    'gemma3': ('Gemma3Text', GEMMA, make_gpt_tokenizer, '<end>'),
}
PLAIN = {'bias': False, 'activation_function': torch.nn.Identity()}
# By name: kind, pooling, Dense modules, keyword arguments of SentenceTransformer.
WHOLE = {
    'bert mean': ('bert', 'mean', lambda: [], {'prompts': PROMPTS}),
    'roberta cls': ('roberta', 'cls', lambda: [], {'prompts': PROMPTS}),
    'qwen3 lasttoken': ('qwen3', 'lasttoken', lambda: [], {'prompts': PROMPTS}),
    'gemma3 dense': (
        'gemma3',
        'mean',
        lambda: [modules.Dense(24, 36, **PLAIN), modules.Dense(36, 20, **PLAIN)],
        {},
    ),
    'bert dense': ('bert', 'cls', lambda: [modules.Dense(24, 7)], {}),
}


def make() -> Golden:
    """Returns the directories, their vectors, and hidden states of plain models."""
    facts: dict = {'plain': {}, 'whole': {}, 'max_seq_length': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind in ('bert', 'qwen3'):
            written = write_plain(folder / 'written' / kind, kind)
            facts['plain'][kind] = capture(written)
            plain = restore(facts['plain'][kind], folder / 'plain' / kind)
            arrays[f'states/{kind}'] = compute_states(plain)
        for name, (kind, pooling, between, more) in WHOLE.items():
            written = write_whole(folder / name, kind, pooling, between(), **more)
            if name in ('bert mean', 'roberta cls'):
                write_legacy(written, {'mean': 'mean_tokens', 'cls': 'cls_token'}[pooling])
            captured = capture(written)
            versions = captured['files']['config_sentence_transformers.json']['__version__']
            # The build of torch depends on the machine: +cpu or +cu130.
            versions['pytorch'] = versions['pytorch'].partition('+')[0]
            facts['whole'][name] = captured
            whole = restore(facts['whole'][name], folder / 'whole' / name)
            model = sentence_transformers.SentenceTransformer(str(whole), device='cpu')
            facts['max_seq_length'][name] = model.max_seq_length
            for side, prompt in [('x', 'query'), ('y', 'document')]:
                prompt_name = prompt if 'prompts' in more else None
                arrays[f'{name}/{side}'] = model.encode(
                    TEXTS, prompt_name=prompt_name, batch_size=7
                )
    return Golden(facts, arrays)


def write_plain(folder: Path, kind: str) -> Path:
    """Writes a model and its tokenizer with transformers' save_pretrained; returns `folder`."""
    name, sizes, tokenizer, pad = KINDS[kind]
    built = tokenizer()
    config = getattr(transformers, f'{name}Config')(vocab_size=built.get_vocab_size(), **sizes)
    getattr(transformers, f'{name}Model')(config).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=pad, model_max_length=40, padding_side='right'
    )
    fast.save_pretrained(folder)
    return folder


def write_whole(folder: Path, kind: str, pooling: str, between: list, **more) -> Path:
    """Writes a model of sentence-transformers, with modules before the normalization; returns its
    directory.
    """
    parts = [
        modules.Transformer(str(write_plain(folder / 'plain', kind)), max_seq_length=40),
        modules.Pooling(24, pooling),
        *between,
        modules.Normalize(),
    ]
    model = sentence_transformers.SentenceTransformer(modules=parts, device='cpu', **more)
    model.save(str(folder / 'whole'))
    return folder / 'whole'


def compute_states(folder: Path) -> np.ndarray:
    """Returns the last hidden states of one text, float32[length, D]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        batch = tokenizer([TEXT], return_tensors='pt')
        return model(**batch).last_hidden_state[0].numpy()
