"""The paths of all files in a run's directory."""

import dataclasses
from pathlib import Path

# Column of metrics.jsonl in the row of the step after which a run stopped early.
STOPPED_EARLY = 'stopped_early'


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run's directory.

    Attributes:
      path: the directory itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The config of the latest start or resume, as JSON."""
        return self.path / 'config.json'

    @property
    def data(self) -> Path:
        """Number of pairs, fingerprint and summary of each source, as JSON."""
        return self.path / 'data.json'

    @property
    def tokenizer(self) -> Path:
        """The folder with a copy of the tokenizer; each checkpoint also contains one."""
        return self.path / 'tokenizer'

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints, each in its own folder `<step>/`."""
        return self.path / 'checkpoints'

    @property
    def best_checkpoints(self) -> Path:
        """The folder with copies of the checkpoints in best.json, each in a folder `<step>/`."""
        return self.path / 'best'

    @property
    def best_steps(self) -> Path:
        """The best checkpoint of each task: {task: {"step": ..., "score": ...}}, as JSON."""
        return self.path / 'best.json'

    @property
    def best_heldout(self) -> Path:
        """The step with the best held-out score: {"step": ..., "score": ...}, as JSON."""
        return self.path / 'best_heldout.json'

    @property
    def metrics(self) -> Path:
        """The training metrics: one JSON line for each logged step."""
        return self.path / 'metrics.jsonl'

    @property
    def log(self) -> Path:
        """The lines that training printed, with their times."""
        return self.path / 'train.log'

    @property
    def tensorboard(self) -> Path:
        """The folder with TensorBoard's event files."""
        return self.path / 'tensorboard'

    @property
    def profile(self) -> Path:
        """The folder with the profiler's traces."""
        return self.path / 'profile'

    @property
    def wandb_id(self) -> Path:
        """The id of the run in Weights & Biases, as text."""
        return self.path / 'wandb_id.txt'

    @property
    def evaluation_events(self) -> Path:
        """The event file with the scores of all evaluated checkpoints."""
        return self.tensorboard / 'eval' / 'events.out.tfevents.0.results'

    @property
    def results(self) -> Path:
        """The scores of the latest evaluated checkpoint, as JSON."""
        return self.path / 'results.json'

    @property
    def history(self) -> Path:
        """The scores of all checkpoints: one JSON line for each checkpoint and task."""
        return self.path / 'results.jsonl'

    @property
    def report(self) -> Path:
        """The folder with the HTML report."""
        return self.path / 'report'

    @property
    def trec_runs(self) -> Path:
        """The folder with rankings in TREC run format."""
        return self.path / 'runs'

    @property
    def vectors(self) -> Path:
        """The folder with the vectors of an unfinished evaluation."""
        return self.path / 'vectors'

    @property
    def owner(self) -> Path:
        """The file that exists while the run is trained, and says by whom."""
        return self.path / '.training'

    @property
    def locks(self) -> Path:
        """The folder with the lock files of evaluators that share the directory."""
        return self.path / '.claims'
