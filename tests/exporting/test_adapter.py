"""What an exported adapter needs before PEFT loads it."""

import pytest

from cpt_jax.exporting.adapter import ExportedAdapter


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        (('/models/base', 0, ''), []),
        (('gs://bucket/base', 0, ''), ['PEFT cannot read gs://bucket/base: copy it']),
        (('base', 0, "the 'text'"), ["--template 'the '\"'\"'text'\"'\"''"]),
        (('gs://b/base', 99, ''), ['--base COPY', 'model.resize_token_embeddings(99)']),
    ],
)
def test_notes_are_those_that_apply(written, expected):
    notes = ExportedAdapter(*written).list_notes()
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert part in note and '\n' not in note
