"""What the losses compare the vectors of a batch with, besides each other.

The module does not import JAX, because the readers of pairs use it.
"""

from typing import Generic, NamedTuple, TypeVar

A = TypeVar('A')  # an array on the host or on devices, or only its shape, dtype and sharding


class Targets(NamedTuple, Generic[A]):
    """The float32 targets of B pairs with T texts; None for what the losses of a run do not use.

    In a batch, an axis of chunks comes first.

    Attributes:
      guide: [B, T, W], unit vectors of the guide that finds false negatives; 0 for an absent text.
      scores: [B, T - 1], scores of y and of each hard negative; 0 for an absent text. Graded pairs
        have only the first one.
      teacher: [B, T, W], unit vectors of the teacher; 0 for an absent text.
    """

    guide: A | None = None
    scores: A | None = None
    teacher: A | None = None


NO_TARGETS: Targets = Targets()


class TargetSizes(NamedTuple):
    """The last axes of the arrays in Targets; 0 for an array that is not there.

    Attributes:
      guide: embedding dimension of the guide.
      scores: number of scores of a pair.
      teacher: embedding dimension of the teacher.
    """

    guide: int = 0
    scores: int = 0
    teacher: int = 0
