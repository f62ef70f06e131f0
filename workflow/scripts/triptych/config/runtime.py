"""Settings of how training jobs run, which do not affect what they compute: a change retrains nothing."""

from typing import Literal

from pydantic import Field, PositiveInt

from triptych.config.base import Record, Switch, former


class Runtime(Record):
    """How training jobs run. A change retrains nothing."""

    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto",
        description="Device that models run on, also in prediction and feature encoding. auto: a GPU if there is one; "
        "a job that was allocated a GPU, or a training job that started on one, never continues on the CPU. gpu: a "
        "GPU, or an error. cpu: the CPU; training jobs that started on a GPU start again.",
    )
    threads: PositiveInt = Field(
        1, description="CPU threads per process of a training job; with small models, run several jobs in parallel."
    )
    processes: PositiveInt = Field(
        1,
        description="Processes among which every step of a training job is divided, one per GPU; on a cluster, the job "
        "requests as many GPUs. Results differ by rounding and by the random dropout masks.",
    )
    gradient_checkpointing: Switch = former(
        "checkpointing",
        "auto",
        description="Recompute layers in the backward pass, which saves memory and costs time; auto: if their "
        "activations would not fit into the free memory. Results are the same.",
    )
    compile: Switch = Field(
        "never",
        description="Compile the language model's layers, which takes about a minute, on a GPU for each of a few "
        "lengths of batches; auto: if training is long enough to gain from it. Results differ by rounding and by the "
        "random dropout masks.",
    )
    save_minutes: float = Field(10, ge=0, description="Minutes between saved states of a running training job.")
    time_limit_minutes: float | None = Field(
        None,
        gt=0,
        description="A training job saves its state and stops before this many minutes have passed, to be resumed by "
        "the next run; set it below the time limit of the queue. Null: no limit.",
    )
    retrain_at_most: int = Field(
        5,
        ge=0,
        description="Number of finished checkpoints that a run may train again. A run that would train more stops and "
        "lists them with the reasons; `--config yes_retrain=true` confirms it.",
    )
