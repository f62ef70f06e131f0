"""What the plan says of jobs on GPUs: how many there are, what they wait for, what they ask for and what they took."""

from collections.abc import Iterator, Sequence

from triptych.commands.jobs import JobState, benchmark
from triptych.commands.requests import GPU_STEPS, Grouping, Requests, gpu_steps
from triptych.config.study import Study

# Seconds in which a GPU is given and idle: a Snakemake begins each job, and another each step (3 s on two cores);
# every start of torch loads models and sets up the device (assumed; 6 s of it for torch alone, on a busy disk).
SNAKEMAKE_BEGINS, TORCH_STARTS = 3, 20


def gpu_lines(study: Study, grouping: Grouping, states: Sequence[JobState]) -> Iterator[str]:
    """Jobs on GPUs of the whole study as lines of text: each step for itself, and as a profile groups them.

    There are none where no profile groups steps and the plan's unit says that the study's hours are not those of a GPU.
    """
    if not grouping.names and "GPU" not in study.settings.plan.unit:
        return
    requests = Requests(study, grouping)
    ways = {"each step a job": Requests(study, Grouping())}
    if grouping.names:
        ways["as the profile groups them"] = requests
    yield f"{'on GPUs':<28}{'jobs':>7}{'waits in the queue':>20}{'starts of torch':>17}{'idle GPU minutes':>18}"
    for name, way in ways.items():
        jobs, starts = len(way.jobs), way.starts()
        idle = ((jobs + sum(map(len, way.jobs))) * SNAKEMAKE_BEGINS + starts * TORCH_STARTS) / 60
        yield f"{name:<28}{jobs:>7}{way.waits():>20}{starts:>17}{idle:>18.0f}"
    yield ""
    yield f"{'asked for on a cluster':<24}{'memory in MB':>14}{'measured peak':>15}{'minutes':>10}{'measured':>10}"
    steps = list(gpu_steps(study))
    for rule in GPU_STEPS:
        asked = [
            (requests.memory(rule, step.wildcards), requests.minutes(rule, step.wildcards))
            for step in steps
            if step.rule == rule
        ]
        if not asked:
            continue
        done = [benchmark(state.job.times) for state in states if state.job.rule == rule and state.state == "done"]
        memory, minutes = map(max, zip(*asked, strict=True))
        yield (f"{rule:<24}{memory:>14}{_most(done, 'max_rss', 1):>15}{minutes:>10}{_most(done, 's', 60):>10}")
    if grouping.names:
        longest = max(requests.longest_jobs().values())
        yield f"{'the longest job':<24}{'':>29}{longest:>10}"
    yield ""


def _most(done: Sequence[dict], key: str, unit: float) -> str:
    """The most of a measurement in its unit, where there is one."""
    values = [found[key] / unit for found in done if isinstance(found.get(key), int | float)]
    return f"{max(values):.0f}" if values else "-"
