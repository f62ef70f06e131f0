"""What a study will cost and what it can show, before anything trains: `triptych plan`, `snakemake plan`.

Jobs that are done and left, trainings that schedules share, hours, disk, and the smallest difference that the grid can
find. Nothing is run and nothing is fetched: what is not known before data or models are there is taken from the
configuration, and said to be so.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence

from triptych.commands.asked import gpu_lines
from triptych.commands.checkout import SNAKEFILE, profile_path
from triptych.commands.cluster import read_profile
from triptych.commands.cost import frozen_gb, kept_gb, model_sizes, quantised, training_gb, tuned, tuned_in_words
from triptych.commands.designs import contrasts, designs, per_fold_hours
from triptych.commands.estimate import DISAGREE, RUN_SD, detectable, disk_gb, fetched_gb, hours, measured_tflops
from triptych.commands.jobs import WORK, JobState, job_states
from triptych.commands.requests import Grouping
from triptych.commands.retraining import short_reason
from triptych.config.grid import Checkpoint
from triptych.config.local import absent, still_read
from triptych.config.paths import CHECKPOINT
from triptych.config.settings import Settings
from triptych.config.stages import OPTIMIZER_BYTES
from triptych.config.study import Study, read_study
from triptych.errors import TriptychError, run_step
from triptych.utils.arguments import add_configfile
from triptych.utils.optional import why_no_4_bits, why_no_8_bits
from triptych.utils.terminal import duration

LARGE = 8  # GB of a frozen language model from which the plan names it
PLANNED = re.compile(r"^Job \d+: Train (.+)\nReason: (.*(?:\n(?!\[|Job ).*)*)", re.MULTILINE)


def unshared(study: Study) -> Counter:
    """Trainings by prefix if every schedule, fold and seed trained all its stages for itself."""
    runs = len(study.grid.folds) * len(study.settings.seeds)
    return Counter(
        {
            prefix: runs * sum(prefix in lineage for lineage in study.grid.lineage.values())
            for prefix in study.grid.prefixes
        }
    )


def trained_again(study: Study) -> list[tuple[str, str]]:
    """Finished trainings that a run would make again, with Snakemake's reasons, from a dry run.

    Raises:
        TriptychError: the dry run fails.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--dry-run", "--nolock", "--cores", "1", "--rerun-triggers", "mtime", "params", "input"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(study.text())
        file.flush()
        answer = subprocess.run([*command, "--configfile", file.name], capture_output=True, text=True)
    text = answer.stdout + answer.stderr
    if answer.returncode:
        raise TriptychError(f"the dry run fails: {text.strip().splitlines()[-1]}")
    found = []
    for name, reason in PLANNED.findall(text):
        prefix, split, seed = re.fullmatch(r"(\S+) on (\S+), seed (\d+)", name).groups()
        if study.checkpoint(Checkpoint(prefix, split, int(seed)), CHECKPOINT).exists():
            found.append((name, reason))
    return found


def lines(study: Study, states: Sequence[JobState]) -> Iterator[str]:
    """The plan as text."""
    from triptych.tables.runs import runs_text  # which reads tables: slow to import

    found = hours(study, states)
    yield f"{'step':<18}{'jobs':>7}{'done':>7}{'remaining':>11}"
    for rule in dict.fromkeys(state.job.rule for state in states):
        found_states = [state.state for state in states if state.job.rule == rule]
        done = found_states.count("done")
        yield f"{rule:<18}{len(found_states):>7}{done:>7}{len(found_states) - done:>11}"
    cells = Counter(cell.prefix for cell in study.grid.trainings)
    alone = unshared(study)
    yield ""
    wide = max(17, *map(len, cells)) + 1
    yield f"{'training':<{wide}}{'jobs':>7}{'hours each':>12}{'hours':>9}   without sharing"
    for prefix, number in cells.items():
        each = found.of_training[prefix]
        yield f"{prefix:<{wide}}{number:>7}{each:>12.2f}{number * each:>9.1f}{alone[prefix]:>10} jobs"
    total = sum(number * found.of_training[prefix] for prefix, number in cells.items())
    saved = sum(max(0, alone[prefix] - number) * found.of_training[prefix] for prefix, number in cells.items())
    fewer = sum(max(0, alone[prefix] - number) for prefix, number in cells.items())
    predictions = [state for state in states if state.job.rule in WORK and not state.job.cell]
    answering = sum(found.of(state.job) for state in predictions)
    plan = study.settings.plan
    each = answering / max(1, len(predictions))
    yield f"{'predictions':<{wide}}{len(predictions):>7}{each:>12.2f}{answering:>9.1f}"
    yield ""
    yield f"training    {sum(cells.values())} jobs, {total:.1f} {plan.unit}"
    yield f"shared      first stages that schedules share save {fewer} training jobs and {saved:.1f} {plan.unit}"
    wait = duration(3600 * found.left / plan.at_once)
    yield f"remaining   {found.left:.1f} {plan.unit}; about {wait} with {plan.at_once} jobs in parallel"
    if found.measured:
        off = f"; the median error of such estimates was {found.error:.0%}" if found.error is not None else ""
        rate = f"{found.rate / 1e12:.2g} TFLOP/s"
        yield f"estimate    at the rate of {found.measured} finished training jobs, {rate}{off}"
    elif found.benched:
        yield f"estimate    at {found.rate / 1e12:.2g} TFLOP/s, as `triptych bench` measured on {found.benched}"
    else:
        rate = measured_tflops(study)
        source = "measured by triptych doctor" if rate else "plan.tflops"
        yield (
            f"estimate    assumed: {rate or plan.tflops:g} TFLOP/s at {plan.utilisation:.0%} utilisation ({source}, "
            "plan.utilisation); `triptych bench` measures it, and finished training jobs will correct it"
        )
    (features, checkpoints), images = disk_gb(study), sum(fetched_gb(study).values())
    over = ": TOO LITTLE" if features + checkpoints + 2 * images > plan.disk_gb else ""
    needed = f"{features:.1f} GB features, at most {checkpoints:.1f} GB checkpoints"
    if images:
        yield f"download    {images:.1f} GB of images out of the hub's archives, where they are not in the cache"
        needed += f", {2 * images:.1f} GB images (as fetched and as prepared)"
    yield f"disk        {needed}; {plan.disk_gb:g} GB available{over}"
    yield from memory_lines(study)
    points, measured = detectable(study)
    size = {"folds": study.settings.folds.number, "seeds": len(study.settings.seeds)}
    assumed = f"assumed: a standard deviation of {RUN_SD} points between runs, {DISAGREE:.0%} of answers differ"
    if len(study.grid.compared) < 2:
        yield "detects     nothing: a single schedule is compared with none"
    elif points == float("inf"):
        yield "detects     nothing: a single run has no spread; use more folds or seeds"
    else:
        yield f"detects     {points:.1f} points: minimum detectable effect at 80 % power, {runs_text(size)}"
        yield f"            ({'from the comparison of this study' if measured else assumed})"
        yield from design_lines(study, found.rate)
    if not all(model_sizes(study, prefix).known for prefix in study.grid.prefixes):
        yield "sizes       of models and data are taken from the configuration; they are not prepared yet"


def memory_lines(study: Study) -> Iterator[str]:
    """What trainings of whole models need on their device, with each optimiser, and what an optimiser lacks."""
    for prefix in study.grid.prefixes:
        if not tuned(study, prefix):
            continue
        own = study.grid.stage_of(prefix).optimizer
        needed = {name: training_gb(study, prefix, name) for name in OPTIMIZER_BYTES}
        gb = {name: f"{size:.0f}" if size >= 9.5 else f"{size:.1f}" for name, size in needed.items()}
        others = [f"{size} with {name}" for name, size in gb.items() if name != own]
        kept = kept_gb(study, prefix)
        images = f" (of the encoder for its images at most {kept:.1f} GB)" if kept else ""
        yield (
            f"memory      {prefix}: {gb[own]} GB of its device for {tuned_in_words(study, prefix)} "
            f"weights, gradients and {own}, and activations{images}; {', '.join(others)}"
        )
    frozen = max((frozen_gb(study, prefix) for prefix in study.grid.prefixes if not tuned(study, prefix)), default=0.0)
    if frozen > LARGE:
        yield f"memory      {frozen:.0f} GB of a device for the frozen language model; activations come on top"
    on = "cpu" if study.settings.runtime.device == "cpu" else None
    if quantised(study) and (obstacle := why_no_4_bits(on)):
        yield f"quantise    {obstacle}"
    used = {study.grid.stage_of(prefix).optimizer for prefix in study.grid.prefixes}
    if "adamw-8bit" in used and (obstacle := why_no_8_bits(on)):
        yield f"optimizer   {obstacle}"


def design_lines(study: Study, rate: float) -> Iterator[str]:
    """How much the runs of finished comparisons vary, and what other designs of about the same cost would detect."""
    from triptych.tables.runs import runs_text
    from triptych.tables.verdicts import few_draws

    known = contrasts(study)
    for one in known:
        yield (
            f"contrast    {one.first} minus {one.second}: {one.effect:+.1f} points; standard deviation "
            f"{one.spread:.1f} between {len(one.run_effects)} runs; detects {one.detectable:.1f}"
        )
    found = designs(study, rate, known[0] if known else None)
    if len(found) < 2:
        return
    now = study.settings.folds.number, len(study.settings.seeds)
    unit = study.settings.plan.unit
    yield f"designs     of about this cost    {unit:>12}   detects"
    for one in found:
        marks = [
            "as configured" if (one.folds, one.seeds) == now else "",
            "few draws of shared stages *" if study.grid.drawn_once and few_draws(one.folds, one.seeds) else "",
        ]
        size, said = runs_text({"folds": one.folds, "seeds": one.seeds}), ", ".join(filter(None, marks))
        yield f"            {size:<22}{one.hours:>12.1f}{one.detectable:>10.1f}   {said}".rstrip()
    if any(study.grid.drawn_once and few_draws(one.folds, one.seeds) for one in found):
        yield "            * folds share too few trainings of a first stage, and intervals may be too narrow;"
        more = f"{per_fold_hours(study, rate):.1f} {unit}"
        yield f"            folds.shared_stages: per-fold mends that; this study would take {more} more"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych plan`."""
    parser = argparse.ArgumentParser(
        prog="triptych plan",
        description=main.__doc__,
        epilog="example: triptych plan --configfile config/config.yaml --profile profiles/aire",
    )
    given = parser.add_mutually_exclusive_group()
    add_configfile(given)
    given.add_argument("--settings", help="the study's settings as JSON")
    grouped = parser.add_mutually_exclusive_group()
    grouped.add_argument("--profile", help="Snakemake's profile, whose `groups` put steps on GPUs into one job")
    grouped.add_argument("--grouping", help="the same as JSON: names of groups by rule, and their components")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Estimate what a study will cost and the smallest difference that it can detect. Nothing is run."""
    arguments = build_parser().parse_args(arguments)
    if arguments.settings:
        study = Study.of(Settings.model_validate_json(arguments.settings))
    else:
        study = read_study(arguments.configfile)
    if arguments.grouping:
        grouping = Grouping(*json.loads(arguments.grouping))
    else:
        grouping = Grouping.of(read_profile(profile_path(arguments.profile)) if arguments.profile else {})
    states = job_states(study, now=0.0)
    print("\n".join([*lines(study, states), "", *gpu_lines(study, grouping, states)]))
    again = trained_again(study) if study.results.exists() else []
    print(f"retraining  {len(again)} finished training jobs would run again")
    for name, reason in again:
        print(f"            {name}: {short_reason(reason)}")
    for line in absent(study, *still_read(study)):
        print(f"missing     {line}")


if __name__ == "__main__":
    run_step(main)
