"""The files of a run: every path name inside a run's directory."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run's directory.

    Attributes:
      path: the directory itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The config that the run was started with last, as JSON."""
        return self.path / 'config.json'

    @property
    def data(self) -> Path:
        """Number of pairs, fingerprint and summary of each source, as JSON."""
        return self.path / 'data.json'

    @property
    def tokenizer(self) -> Path:
        """The folder with a copy of the tokenizer; checkpoints hold their own."""
        return self.path / 'tokenizer'

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints, `<step>/` each."""
        return self.path / 'checkpoints'

    @property
    def best(self) -> Path:
        """The folder with the checkpoints that best.json names, `<step>/` each."""
        return self.path / 'best'

    @property
    def best_steps(self) -> Path:
        """best.json: task -> {"step": ..., "score": ...}."""
        return self.path / 'best.json'

    @property
    def metrics(self) -> Path:
        """One JSON row for each logged training step."""
        return self.path / 'metrics.jsonl'

    @property
    def tensorboard(self) -> Path:
        """The folder with the event files of training."""
        return self.path / 'tensorboard'

    @property
    def evaluation_events(self) -> Path:
        """The event file with the scores of evaluated checkpoints."""
        return self.tensorboard / 'eval' / 'events.out.tfevents.0.results'

    @property
    def results(self) -> Path:
        """The scores of the checkpoint that was evaluated last."""
        return self.path / 'results.json'

    @property
    def history(self) -> Path:
        """One JSON row for each checkpoint and task."""
        return self.path / 'results.jsonl'

    @property
    def report(self) -> Path:
        """The folder with the HTML report."""
        return self.path / 'report'

    @property
    def trec_runs(self) -> Path:
        """The folder with rankings in TREC's form."""
        return self.path / 'runs'

    @property
    def vectors(self) -> Path:
        """The folder with vectors of an evaluation that is not finished."""
        return self.path / 'vectors'

    @property
    def claims(self) -> Path:
        """The folder with the locks of evaluators that share the directory."""
        return self.path / '.claims'
