"""Small data sets in SentEval's layout, and an embedding function for them."""

import numpy as np

from cpt_jax.benchmark_data.senteval import TREC_CLASSES

WORDS = {0: ['bad', 'dull', 'poor', 'flat'], 1: ['good', 'fine', 'rich', 'warm']}
TREC_WORDS = dict(enumerate(['abbr', 'what', 'who', 'where', 'count', 'date']))


def sentence(rng, label, noise=0.35):
    """Returns 2 to 6 words, most of them from the label's list."""
    return ' '.join(
        rng.choice(WORDS[label if rng.random() > noise else 1 - label])
        for _ in range(rng.integers(2, 7))
    )


def write_two_files(folder, positive, negative, count=60):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, label in ((positive, 1), (negative, 0)):
        (folder / name).write_text(
            ''.join(f'{sentence(rng, label)} \n' for _ in range(count)), encoding='latin-1'
        )


def write_sst(folder, counts=(('train', 200), ('dev', 60), ('test', 80))):
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for part, count in counts:
        labels = np.arange(count) % 2
        (folder / f'sentiment-{part}').write_text(
            ''.join(f'{sentence(rng, label)}\t{label}\n' for label in labels)
        )


def write_trec(folder, counts=(('train_5500', 180), ('TREC_10', 60))):
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    for name, count in counts:
        rows = [
            (i % 6, rng.choice([TREC_WORDS[i % 6], TREC_WORDS[rng.integers(6)]]))
            for i in range(count)
        ]
        (folder / f'{name}.label').write_text(
            ''.join(f'{TREC_CLASSES[label]}:sub caf\xe9 {word} ?\n' for label, word in rows),
            encoding='latin-1',
        )


def write_mrpc(folder, counts=(('train', 160), ('test', 50))):
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for part, count in counts:
        rows = [(int(rng.random() < 0.7), rng.integers(2)) for _ in range(count)]
        lines = [
            f'{same}\t1\t2\t{sentence(rng, a)} "\t{sentence(rng, a if same else 1 - a)}\n'
            for same, a in rows
        ]
        text = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n' + ''.join(lines)
        (folder / f'msr_paraphrase_{part}.txt').write_text(text, encoding='utf-8')


def write_all(data_dir):
    """Writes the seven data sets to data_dir/senteval. Returns data_dir."""
    senteval = data_dir / 'senteval'
    write_two_files(senteval / 'MR', 'rt-polarity.pos', 'rt-polarity.neg')
    write_two_files(senteval / 'CR', 'custrev.pos', 'custrev.neg')
    write_two_files(senteval / 'SUBJ', 'subj.objective', 'subj.subjective')
    write_two_files(senteval / 'MPQA', 'mpqa.pos', 'mpqa.neg')
    write_sst(senteval / 'SST' / 'binary')
    write_trec(senteval / 'TREC')
    write_mrpc(senteval / 'MRPC')
    return data_dir


def bag_of_words(texts, side):
    """Returns float32[n, 16]: unit vectors, the normalized sum of one random vector per word."""
    words = [word for text in texts for word in text.split()]
    direction = {
        word: np.random.default_rng(sum(map(ord, word))).standard_normal(16) for word in words
    }
    vectors_NxD = np.stack(
        [sum((direction[word] for word in text.split()), np.zeros(16)) for text in texts]
    )
    return (
        vectors_NxD / np.maximum(np.linalg.norm(vectors_NxD, axis=1, keepdims=True), 1e-9)
    ).astype(np.float32)
