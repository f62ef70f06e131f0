"""Settings that only say how trainings run: a change of them trains nothing again."""

from pydantic import Field, PositiveInt

from triptych.config.base import Record, Switch, former


class Runtime(Record):
    """How trainings run. A change trains nothing again."""

    threads: PositiveInt = Field(
        1, description="CPU threads of each process of a training; small models train best side by side."
    )
    processes: PositiveInt = Field(
        1,
        description="Processes that share every step of one training, one for each GPU; on a cluster, the job asks "
        "for so many GPUs. Results differ by rounding, and by the draws of dropout.",
    )
    gradient_checkpointing: Switch = former(
        "checkpointing",
        "auto",
        description="Compute layers again in the backward pass, which saves memory and costs time; auto: where what "
        "they keep would not fit into the memory that is free. Results are the same.",
    )
    compile: Switch = Field(
        "never",
        description="Compile the language model's layers, which takes about a minute; auto: on a CPU, for trainings "
        "that are long enough to make up for it. Results differ by rounding, and by the draws of dropout.",
    )
    save_minutes: float = Field(10, ge=0, description="Minutes between two saved states of a training under way.")
    time_limit_minutes: float | None = Field(
        None,
        gt=0,
        description="A training saves itself and stops, to be run again, before this many minutes are over; set it "
        "below the time limit of the machine's queue. Null: no limit.",
    )
    retrain_at_most: int = Field(
        5,
        ge=0,
        description="A run that would train more finished checkpoints again stops and lists them, with the reasons; "
        "`--config yes_retrain=true` lets it go on.",
    )
