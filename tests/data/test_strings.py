import pytest

from cpt_jax.data.strings import Strings


def test_strings_equal_the_stored_texts():
    texts = ['', 'abc', 'é – 漢字 🙂', '', 'line\nline', '\0']
    strings = Strings.from_texts(texts)
    assert len(strings) == 6
    assert list(strings) == texts
    assert strings.bytes.nbytes == sum(len(text.encode()) for text in texts)


def test_lone_surrogate_becomes_a_question_mark():
    assert Strings.from_texts(['a\ud800b'])[0] == 'a?b'


@pytest.mark.parametrize('index', [-1, 2])
def test_invalid_index_raises_index_error(index):
    with pytest.raises(IndexError):
        Strings.from_texts(['a', 'b'])[index]
