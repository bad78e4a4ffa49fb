"""What the papers and their sources print for the tasks that are scored here, with the provenance of every figure.

Figures are as printed: fractions x100. The tables of the cpt paper (arXiv 2201.10005) are images in the copies that could be read, so most
of its figures come from others that copy them; those that were found nowhere are left out rather than quoted from memory.
"""

from cpt_jax.evals.figures import OneOf, Roughly, Score, Table, models, scores_of
from cpt_jax.evals.knn import NEIGHBOURS, TEMPLATE, WORDS
from cpt_jax.evals.probe import PROTOCOLS

DEFAULT_LABELS = {'words': list(WORDS), 'description': [TEMPLATE.replace('{}', word) for word in WORDS]}

_STS = scores_of('spearman', 'suite/sts')
_STS_PAIRS = {'STS12': 3108, 'STS13': 1500, 'STS14': 3750, 'STS15': 3000, 'STS16': 1186, 'STSBenchmark': 1379, 'SICK-R': 4927}
_SCALING = 'README of kongds/scaling_sentemb'
STS = Table(
    'Sentence similarity, Spearman',
    _STS,
    models(
        _STS,
        'T',
        'cpt-text',
        'Table 4 (STS-B alone, the model is not said), read from wizwand.com',
        {'size not said': '- - - - - 82.2 - -'},
    )
    + models(
        _STS,
        'D',
        'PromptEOL',
        'arXiv 2307.16645, no demonstration: means with one demonstration less the gains that it prints; cells, rounded to a tenth, and '
        'the mean of LLaMA2-7B from later papers',
        {
            'OPT-125M': '- - - - - - - 67.00',
            'OPT-350M': '- - - - - - - 65.03',
            'OPT-1.3B': '64.6T 79.1T 68.5T 78.9T 78.6T 73.2T 69.4T 73.18',
            'OPT-2.7B': '- - - - - - - 69.30',
            'OPT-6.7B': '- - - - - - - 72.10',
            'OPT-13B': '- - - - - - - 71.86',
            'OPT-30B': '- - - - - - - 72.43',
            'OPT-66B': '55.7T 74.6T 64.9T 72.3T 75.2T 71.7T 67.4T 68.84P',
            'LLaMA2-7B': '- - - - - - - 70.03T',
        },
    )
    + models(
        _STS,
        'C',
        'PromptEOL, one demonstration',
        f'{_SCALING}, 16 bits; the demonstration was chosen on the dev set of STS-B',
        {
            'OPT-125M': '62.22 73.10 61.84 71.09 72.08 67.80 64.10 67.46',
            'OPT-350M': '63.87 73.85 63.41 72.45 73.13 70.84 65.61 69.02',
            'OPT-1.3B': '72.78 83.77 73.61 83.42 80.60 78.80 69.69 77.52',
            'OPT-2.7B': '68.49 84.72 75.15 83.62 81.34 80.94 72.97 78.18',
            'OPT-6.7B': '70.65 84.51 75.01 83.51 82.00 81.12 76.77 79.08',
            'OPT-13B': '71.99 85.22 76.04 82.23 81.38 81.42 75.00 79.04',
            'OPT-30B': '69.99 83.35 74.75 83.14 82.42 81.45 77.46 78.94',
            'OPT-66B': '69.93 83.29 74.88 80.10 81.11 81.76 76.26 78.19',
        },
    )
    + models(
        _STS,
        'C',
        'PromptEOL, trained on NLI',
        f'{_SCALING}, 16 bits',
        {
            'OPT-1.3B': '79.01 89.26 84.10 88.30 84.62 87.71 80.52 84.79',
            'OPT-2.7B': '79.49 89.64 84.80 89.51 85.91 88.33 81.64 85.62',
            'OPT-6.7B': '80.14 90.02 84.94 89.78 85.84 88.75 81.29 85.82',
            'OPT-13B': '80.20 90.24 85.34 89.52 85.90 88.56 82.06 85.97',
            'LLaMA-7B': '79.16 90.22 85.40 88.99 86.25 88.37 81.51 85.70',
            'LLaMA-13B': '78.63 90.03 85.46 89.48 86.18 88.45 82.69 85.85',
            'LLaMA-30B': '79.72 90.25 85.85 90.04 86.27 89.14 82.38 86.24',
        },
    )
    + models(
        _STS,
        'C',
        'SimCSE, unsupervised',
        'README of princeton-nlp/SimCSE',
        {
            'BERT-base': '- - - - - - - 76.25',
            'BERT-large': '- - - - - - - 78.41',
            'RoBERTa-base': '- - - - - - - 76.57',
            'RoBERTa-large': '- - - - - - - 78.90',
        },
    )
    + models(
        _STS,
        'C',
        'SimCSE, supervised',
        'README of princeton-nlp/SimCSE; the row of BERT-base as its evaluation script prints it',
        {
            'BERT-base': '75.30 84.67 80.19 85.40 80.82 84.26 80.39 81.58',
            'BERT-large': '- - - - - - - 82.21',
            'RoBERTa-base': '- - - - - - - 82.52',
            'RoBERTa-large': '- - - - - - - 83.76',
        },
    ),
    measured={'split': 'test'},
    sizes={f'sts/{name}': {'n': n} for name, n in _STS_PAIRS.items()},
    notes='Over all pairs of a set together, nothing trained; the cpt paper does not say how it takes STS12 to STS16 together.',
)

_PROBED = {'MR': 10_662, 'CR': 3775, 'SUBJ': 10_000, 'MPQA': 10_606, 'SST2': 1821, 'TREC': 500, 'MRPC': 1725}
_PROBE = scores_of('accuracy', 'suite/senteval')
PROBE = Table(
    'Linear probes, accuracy',
    _PROBE,
    models(
        _PROBE,
        'P',
        'PromptEOL, OPT-6.7B',
        'arXiv 2307.16645, the text on transfer tasks; two demonstrations: one of each class, from the training set of MR',
        {'none': '- - - - - - - 91.34', 'two demonstrations': '- - - - - - - 91.78'},
    ),
    measured={'protocol': PROTOCOLS['senteval']},
    sizes={f'probe/{name}': {'n': n} for name, n in _PROBED.items()},
    notes="The cpt paper's Table 2 could be read nowhere.",
)

_SST = Score('zeroshot/SST2', 'accuracy_words'), Score('zeroshot/SST2', 'accuracy_description'), Score('knn/SST2', 'accuracy')
SST = Table(
    'SST-2 without training a classifier, accuracy',
    _SST,
    models(_SST, 'T', 'cpt-text, trained on NLI', 'Table 3, as the GTE paper (arXiv 2308.03281) copies it', {'L': '88.1 89.1 -'})
    + models(_SST, 'P', 'supervised', 'Table 3 of the cpt paper', {'Socher et al. 2013': '85.4 85.4 85.4'}),
    sizes={
        'zeroshot/SST2': {'n': 1821, 'labels': DEFAULT_LABELS},
        'knn/SST2': {'n': 1821, 'k': NEIGHBOURS},
    },
)

_LARGE = (
    Score('retrieval/msmarco', 'mrr@10'),
    *(Score(f'openqa/{name}', f'answer_recall@{k}') for name in ('nq', 'triviaqa') for k in (20, 100)),
)
_CONTRIEVER = 'Table 5; NQ and TriviaQA as the Contriever paper (arXiv 2112.09118, final version) has them'
_WIKIPEDIA = {'documents': Roughly(21_000_000)}
LARGE_SEARCH = Table(
    'Large-scale search',
    _LARGE,
    models(
        _LARGE,
        'T',
        'cpt-text, unsupervised',
        'Table 5; S as the GTE paper (arXiv 2308.03281) copies it, XL from wizwand.com',
        {'S': '19.9 - - - -', 'XL': '22.7 - - - -'},
    )
    + models(
        _LARGE,
        'T',
        'unsupervised',
        _CONTRIEVER,
        {
            'BM25': '- 62.9 78.3 76.4 83.2',
            'ICT': '- 50.9 66.8 57.5 73.6',
            'MSS': '- 59.8 74.9 68.2 79.4',
            'Contriever': '- 67.8 82.1 74.2 83.2',
        },
    )
    + models(_LARGE, 'T', 'supervised', _CONTRIEVER, {'DPR': '- 78.4 85.4 79.4 85.0', 'FiD-KD': '- 84.3 89.3 83.6 87.7'}),
    sizes={
        'retrieval/msmarco': {'split': 'dev', 'n': 6980, 'documents': Roughly(8_840_000)},
        'openqa/nq': {'n': 3610, **_WIKIPEDIA},
        'openqa/triviaqa': {'n': 11_313, **_WIKIPEDIA},
    },
    notes='The cpt paper searches with an approximate index of FAISS that it does not name, and speaks of "over 4M" passages of MS MARCO.',
)

_BEIR = scores_of('ndcg@10', 'suite/cpt_beir')
# Test queries and documents as the README of beir-cellar/beir counts them.
_BEIR_SIZES = {
    'arguana': (1406, 8_670),
    'climate-fever': (1535, 5_420_000),
    'dbpedia-entity': (400, 4_630_000),
    'fever': (6666, 5_420_000),
    'fiqa': (648, 57_000),
    'hotpotqa': (7405, 5_230_000),
    'nfcorpus': (323, 3_600),
    'quora': (10_000, 523_000),
    'scifact': (300, 5_000),
    'trec-covid': (50, 171_000),
    'webis-touche2020': (49, 382_000),
}
_ADA = "OpenAI's post of 15 December 2022 (S to XL taken to be its text-search-{ada, babbage, curie, davinci}-001)"
BEIR = Table(
    'BEIR, nDCG@10',
    _BEIR,
    models(
        _BEIR,
        'T',
        'cpt-text, unsupervised',
        'Table 6; S as the GTE paper (arXiv 2308.03281) copies it, L from paperswithcode.com',
        {'S': '38.7 15.8 27.2 57.1 34.1 51.5 32.0 68.1 65.4 52.9 21.0 42.2D', 'L': '- - - - - - - - - - - 44.2'},
    )
    + models(
        _BEIR,
        'T',
        'cpt-text, trained on MS MARCO',
        f'Table 6; means from {_ADA}, that of XL also from paperswithcode.com; cells as the MedCPT paper copies them',
        {
            'S': '- - - - - - - - - - - 49.0',
            'M': '- - - - - - - - - - - 50.4',
            'L': '- - - - - - - - - - - 50.9',
            'XL': '- - - - - - 40.7 - 75.4 64.9 - 52.8',
        },
    )
    + models(
        _BEIR,
        'T',
        'others',
        'Table 6, from paperswithcode.com',
        {
            'BM25': '- - - - - - - - - - - 47.6',
            'Contriever, unsupervised': '- - - - - - - - - - - 40.9',
            'Contriever, MS MARCO': '- - - - - - - - - - - 50.2',
        },
    ),
    measured={'split': 'test', 'index': 'exact'},
    sizes={f'retrieval/{name}': {'n': n, 'documents': Roughly(documents)} for name, (n, documents) in _BEIR_SIZES.items()},
    notes='The cpt paper does not say whether documents are searched with their titles; here they are.',
)

# Test pairs as CodeSearchNet gives them out (code_search_net of Hugging Face), and as GraphCodeBERT cleans them, with its candidates
# (README of GraphCodeBERT/codesearch in microsoft/CodeBERT).
_RELEASED = {'go': 14_291, 'ruby': 2_279, 'python': 22_176, 'java': 26_909, 'javascript': 6_483, 'php': 28_391}
_CLEANED = {
    'go': (8_122, 28_120),
    'ruby': (1_261, 4_360),
    'python': (14_918, 43_827),
    'java': (10_955, 40_347),
    'javascript': (3_291, 13_981),
    'php': (14_014, 52_660),
}
_IN_THOUSANDS = {
    f'codesearch/{name}': {'n': OneOf(tuple(count // 1000 * 1000 for count in (_RELEASED[name], _CLEANED[name][0])))} for name in _RELEASED
}

# Columns: Go, Ruby, Python, Java, JavaScript, PHP and their mean.
_CODE_1K = scores_of('mrr_of_1000', 'suite/csn')
_GTE = 'as the GTE paper (arXiv 2308.03281) copies it'
CODE_1K = Table(
    'Code search among 1,000 functions, MRR',
    _CODE_1K,
    models(
        _CODE_1K,
        'T',
        'cpt-code',
        f'Table 7, {_GTE}, and from paperswithcode.com',
        {'S': '97.7 86.3 99.8 94.0 86.0 96.7 93.4', 'M': '97.5 85.5 99.9 94.4 86.5 97.2 93.5'},
    )
    + models(
        _CODE_1K,
        'T',
        'others',
        f'Table 7, {_GTE} (the languages of GraphCodeBERT seem exchanged there: its mean alone), and the GTE paper itself',
        {
            'CodeBERT': '84.0 69.3 86.8 74.8 70.6 70.6 76.0',
            'GraphCodeBERT': '- - - - - - 77.4',
            'GTE-base': '84.2P 79.6P 98.8P 86.8P 79.4P 86.8P 85.9P',
        },
    ),
    sizes=_IN_THOUSANDS,
    notes='From docstring to function; the papers do not all prepare the texts of CodeSearchNet in the same way. '
    "The cpt paper's Table 8, of 10,000 functions, could be read nowhere.",
)

_CODE_ALL = scores_of('mrr_of_all', 'suite/csn')
CODE_ALL = Table(
    'Code search among all functions, MRR',
    _CODE_ALL,
    models(
        _CODE_ALL,
        'T',
        "GraphCodeBERT's setting",
        'the second table of the GTE paper (arXiv 2308.03281)',
        {
            'CodeBERT': '88.2 67.9 67.2 67.6 62.0 62.8 69.3',
            'GraphCodeBERT': '89.7 70.3 69.2 69.1 64.4 64.9 71.3',
            'UniXcoder': '91.5 74.0 72.0 72.6 68.4 67.6 74.4',
            'CodeRetriever': '92.4 77.1 75.8 76.5 71.9 70.8 77.4',
        },
    ),
    sizes={f'codesearch/{name}': {'n': n, 'candidates': candidates} for name, (n, candidates) in _CLEANED.items()},
    notes='From docstring to function, on the data as GraphCodeBERT cleans them, as tokens, where --code_text here may be raw; '
    'the cpt paper has no such table.',
)

_TEXT_1K = scores_of('code_to_text_mrr_of_1000', 'suite/csn')
TEXT_1K = Table(
    'From function to docstring among 1,000, MRR',
    _TEXT_1K,
    models(
        _TEXT_1K,
        'P',
        'CodeSearchNet',
        'arXiv 1909.09436, whose script ranks docstrings for each function; its "Avg" is of all languages mixed, and no mean of these',
        {
            'NBoW': '64.1 42.9 58.1 51.4 46.1 48.4 -',
            '1D-CNN': '62.7 24.5 57.1 52.7 35.2 52.9 -',
            'biRNN': '45.2 8.4 32.1 28.7 15.3 25.1 -',
            'SelfAtt': '68.1 36.5 69.2 58.7 45.1 60.1 -',
            'SelfAtt + NBoW': '66.3 45.7 61.1 56.2 49.2 50.8 -',
        },
    ),
    sizes=_IN_THOUSANDS,
)

TABLES = STS, PROBE, SST, LARGE_SEARCH, BEIR, CODE_1K, CODE_ALL, TEXT_1K
