"""Pairs as examples of TensorFlow Datasets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cpt_jax.prepare.document import TextPair

if TYPE_CHECKING:  # the import takes half a second, and workers do without it
    import tensorflow_datasets as tfds

SPLITS = ('train', 'test')


def make_features(fields: Sequence[str]) -> 'tfds.features.FeaturesDict':
    """Returns the features of an example.

    Args:
      fields: names of further fields, stored as texts.
    """
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            'x': text,
            'y': text,
            'id': text,
            'source': text,
            'negatives': tfds.features.Sequence(text),
            **{name: text for name in fields},
        }
    )


def encode_example(pair: TextPair, name: str, source: str, fields: Sequence[str]) -> bytes:
    """Returns the serialized tf.train.Example of a pair.

    Equal examples have equal bytes.

    Args:
      pair: the pair.
      name: its id, unique in the source.
      source: name of the source.
      fields: names of further fields; '' is stored for those that the pair does not have.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    values: dict[str, list[Any]] = {
        'x': [pair.x],
        'y': [pair.y],
        'id': [name],
        'source': [source],
        'negatives': list(pair.negatives),
        **{field: [_to_text(pair.fields.get(field))] for field in fields},
    }
    example = tf_example_pb2.Example()
    features = example.features.feature
    for field, texts in values.items():
        features[field].bytes_list.value.extend(text.encode('utf-8', 'replace') for text in texts)
    return example.SerializeToString(deterministic=True)


def decode_example(record: bytes) -> dict[str, list[str]]:
    """Returns the texts of each feature of a serialized example."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)
    return {
        name: [value.decode('utf-8') for value in feature.bytes_list.value]
        for name, feature in example.features.feature.items()
    }


def _to_text(value: object) -> str:
    if value is None:
        return ''
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    return str(value)
