"""The temperature, learned and constant. The PromptEOL paper prints 0.5; its program has 0.05."""

from experiment import Experiment
from experiment_flags import QUICKSTART, QUICKSTART_TASKS

EXPERIMENT = Experiment(
    title='Temperature',
    train=QUICKSTART,
    evaluate=QUICKSTART_TASKS,
    factors={
        'temperature': {
            'learned, from 0.05 (the quickstart)': '',
            'learned, from 1': '--config.loss.initial_temperature=1.0',
            **{
                f'constant {value}': f'--config.loss.initial_temperature={value} '
                '--config.loss.train_temperature=False'
                for value in (0.02, 0.05, 0.1, 0.5)
            },
        }
    },
    minutes=0.6,
)
