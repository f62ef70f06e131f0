"""What touches Snakemake's internals: faster dry runs, stops before work is lost, records of unwatched jobs, groups.

Snakemake promises none of the names that are used here. Where its version lacks one of them, a line says what is
missing then, and the workflow runs without that hook. TRIPTYCH_HOOKS=off switches all of them off.
"""

import contextlib
import functools
import gc
import inspect
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from triptych.commands.retraining import changes, other_settings, refuse_to_retrain
from triptych.config.grid import Checkpoint
from triptych.config.local import absent
from triptych.config.paths import CHECKPOINT, MODEL_ANSWERS
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.evaluate.answered import record_path, write_answered
from triptych.io.manifest import canonical_json, read_json
from triptych.utils.kills import KILLED, exit_status, kills_for_memory, note_kill
from triptych.utils.terminal import duration

VIEW_JOB = re.compile(r"""'(\{"batch_size":.*"precision":"[a-z0-9]+"),"view":"[a-z0-9-]+"\}'""")
EXPANDED = re.compile(r"[$`\\]")  # what a shell reads between double quotes
TOGETHER = "TRIPTYCH_TOGETHER"  # for the Snakemake of each step of one job: rules and wildcards of all of them
# Rules whose results say how they were made. Rules are known by the end of their names: as a module they have a prefix.
SAY_SETTINGS = (*MODEL_ANSWERS, "train_stage", "prepare_model")
SUBMITTED = "TRIPTYCH_SUBMITTED"  # the settings with which a cluster's jobs were submitted
GROW = ("ablations", "datasets", "stages", "sweeps")  # settings by name, to which more may come
CLOCK_SKEW = 60  # seconds; less than that passes before it matters


def _soft(consequence: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a hook do without what this version of Snakemake does not have."""

    def decorate(hook: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(hook)
        def run(*arguments: Any) -> None:
            if os.environ.get("TRIPTYCH_HOOKS") == "off":
                return
            try:
                hook(*arguments)
            except (AttributeError, ImportError, TypeError) as error:
                print(
                    f"this version of Snakemake lacks what a hook of Triptych needs ({error}): {consequence}",
                    file=sys.stderr,
                )

        return run

    return decorate


def refuse_edited(study: Study, submitted: bool) -> None:
    """Stop a job of a cluster that reads other settings than the Snakemake that submitted it.

    Jobs read the configuration when they start. What was edited since would decide what they make, but Snakemake would
    record what it had read itself. How jobs run may change, what a study consists of may grow, and so may what tables
    alone read.

    Args:
        study: as this process reads it.
        submitted: whether this process is such a job.

    Raises:
        TriptychError: with what was changed.
    """
    known, now = json.loads(os.environ.get(SUBMITTED, "{}")), _deciding(study)  # by study: a workflow may have several
    place = str(study.results)
    if not submitted:
        os.environ[SUBMITTED] = canonical_json({**known, place: now})
        return
    before = known.get(place, now)
    for name in GROW:
        both = before.get(name, {}).keys() & now.get(name, {}).keys()
        before, now = ({**one, name: {key: one[name][key] for key in both}} for one in (before, now))
    if changed := changes(before, now):
        raise TriptychError(
            f"the configuration was changed after this job was submitted: {'; '.join(changed)}; change it back, or "
            "stop Snakemake and start it again"
        )


def _deciding(study: Study) -> dict[str, Any]:
    """The settings that decide what jobs make."""
    free = {"pathvars", "cache", "seeds", "schedules", "runtime", "plan", "wandb", "shards"}
    of_tables = {"evaluation": {"primary", "equivalence_margin"}}
    found = study.settings.model_dump(mode="json", by_alias=True, exclude=dict.fromkeys(free, True) | of_tables)
    found["sweeps"] = {name: {**sweep, "values": None} for name, sweep in found.get("sweeps", {}).items()}
    return found


@_soft("a path with $ or ` may be read as another one on a cluster")
def refuse_expanded_paths(workflow: Any, scripts: Path) -> None:
    """Refuse places that submission to a cluster would change: SLURM's plugin puts commands between double quotes.

    Args:
        workflow: Snakemake's.
        scripts: a folder of this checkout.

    Raises:
        TriptychError: a path that jobs are told holds a character that a shell reads there.
    """
    if workflow.local_exec:
        return
    for place in map(str, (scripts, workflow.workdir_init, *workflow.configfiles, sys.executable)):
        if found := EXPANDED.search(place):
            raise TriptychError(
                f"{place}: the path holds {found[0]}, which submission to the cluster reads as something else; "
                "use a path without $, ` and \\"
            )


@_soft("dry runs of large grids take longer")
def speed_up_dry_runs() -> None:
    """Read the signature of an input function once, and look for garbage less often.

    Snakemake reads the signatures of the same functions 25 times for each job, an eighth of a dry run. Jobs live to the
    end: looking for garbage among them, again and again, took up to a tenth. That no group depends on itself is looked
    for twice, of which the second takes as long again as all the rest of making groups.
    """
    gc.set_threshold(50_000)
    import snakemake.common
    import snakemake.rules
    from snakemake.dag import DAG

    read_once = functools.lru_cache(4096)(snakemake.common.get_function_params)
    snakemake.common.get_function_params = snakemake.rules.get_function_params = read_once
    if hasattr(DAG, "validate_group"):
        DAG._check_groups = lambda self: None


@_soft("answers of a study that an earlier version finished are asked again")
def recognise_earlier_predictions() -> None:
    """Read what earlier versions recorded of each view's job as what is recorded now, which does not name the view."""
    from snakemake.persistence import PersistenceBase

    recorded = PersistenceBase.params
    PersistenceBase.params = lambda self, path: without_view(recorded(self, path))


def without_view(params: list[str] | None) -> list[str] | None:
    """Give recorded parameters without the view, where they are those of one view's prediction."""
    for text in params or ():
        if found := VIEW_JOB.fullmatch(text):
            return [f"'{found[1]}}}'"]
    return params


@_soft("folders of the user's that are not there show when they are read")
def refuse_absent(workflow: Any, study: Study) -> None:
    """Stop where a job would read a folder or table of the user's that is not there.

    Raises:
        TriptychError: with a line for each.
    """
    jobs = list(workflow.dag.needrun_jobs())
    datasets = [job.wildcards.dataset for job in jobs if job.rule.name.endswith("fetch_dataset")]
    models = [f"{job.wildcards.role}{job.wildcards.tag}" for job in jobs if job.rule.name.endswith("prepare_model")]
    if lines := absent(study, datasets, models):
        raise TriptychError("\n".join(lines))


@_soft("finished training jobs that a changed setting would run again are not listed beforehand")
def protect_trainings(workflow: Any, at_most: int) -> None:
    """Stop before more than `at_most` finished trainings are made again.

    Raises:
        TriptychError: there are more; it lists them with Snakemake's reasons.
    """
    again = [
        (f"{job.wildcards.prefix} on {job.wildcards.split}, seed {job.wildcards.seed}", str(workflow.dag.reason(job)))
        for job in workflow.dag.needrun_jobs()
        if job.rule.name.endswith("train_stage") and Path(job.output.manifest).exists()
    ]
    refuse_to_retrain(again, at_most)


@_soft("what was made without Snakemake's record of it counts as made with the settings of now")
def refuse_other_settings(workflow: Any, study: Study) -> None:
    """Stop where Snakemake has no record of what is finished, as in a copied folder, and its settings differ.

    Trainings, answers and models say themselves how they were made.

    Raises:
        TriptychError: with a line for each such training, file of answers and model.
    """
    lines = []
    for job in workflow.dag.jobs:
        if not job.rule.name.endswith(SAY_SETTINGS) or workflow.dag.needrun(job):
            continue
        if not workflow.persistence.has_metadata(job):
            lines += [f"{made}: {'; '.join(changed)}" for made, changed in _made_otherwise(job, study) if changed]
    if lines:
        listed = "\n  ".join(lines)
        raise TriptychError(
            "finished results have other settings, and Snakemake has no record by which it would notice (copy the "
            f"folder .snakemake/ along with results):\n  {listed}\nRestore these settings, or remove these results"
        )


def _made_otherwise(job: Any, study: Study) -> Iterator[tuple[Path, list[str]]]:
    """Say of what a job made, and what is still there, in which settings it differs from the study's."""
    if job.rule.name.endswith("train_stage"):
        cell = Checkpoint(job.wildcards.prefix, job.wildcards.split, int(job.wildcards.seed))
        if study.checkpoint(cell, CHECKPOINT).exists():
            yield study.checkpoint(cell), other_settings(study, cell)
    elif job.rule.name.endswith("prepare_model"):
        made, asked = Path(job.output[0]), json.loads(job.params.settings)
        before = read_json(made)["settings"] if made.exists() else {}
        # What is not stated of a part of a LLaVA, its files decide. Earlier versions did not know all settings, and on
        # another machine the same model may be in another folder.
        stated = [name for name in asked if "part_of" not in asked or asked[name] is not None]
        known = [name for name in stated if name in before and name != "folder"]
        yield made.parent, changes(*({name: settings[name] for name in known} for settings in (before, asked)))
    else:
        for made in map(Path, job.output):
            with contextlib.suppress(TriptychError, ValueError):  # damaged, or none, as of version 0.1
                yield made, changes(json.loads(read_json(record_path(made))["job"]), json.loads(job.params.job))


@_soft("forced predictions keep their answers, and a new view of a study of an earlier version asks all of them again")
def settle_answers(workflow: Any) -> None:
    """Before predictions run, settle which of their answers may stay.

    Steps keep answers whose record says that they are made from the same settings and inputs. Forced jobs keep nothing.
    Earlier versions wrote no such record: it is written here from Snakemake's own, where the settings have not changed.
    """
    from snakemake.common import async_run

    for job in workflow.dag.needrun_jobs():
        if not job.rule.name.endswith(MODEL_ANSWERS):
            continue
        forced = workflow.dag.reason(job).forced and not async_run(workflow.persistence.incomplete(job))
        for path in job.output:
            answers = Path(path)
            if forced:
                record_path(answers).unlink(missing_ok=True)
            elif answers.exists() and not record_path(answers).exists():
                recorded = workflow.persistence.metadata(path)
                known = recorded and not workflow.persistence.params_changed(job, path) and recorded.input_checksums
                hashes = {name: (known or {}).get(str(file), "") for name, file in job.input.items()}
                if all(hash_.startswith("sha256:") for hash_ in hashes.values()):
                    write_answered(answers, job.params.job, {k: v.removeprefix("sha256:") for k, v in hashes.items()})


@_soft("files that are dated ahead of the clock are not named")
def refuse_dates_ahead(workflow: Any) -> None:
    """Stop where a file is dated ahead of the clock, as a machine with a wrong clock leaves it.

    What is made of it would be older than it, and so be deleted and made again at every start.

    Raises:
        TriptychError: such a file is an input of a job that would run; it is named.
    """
    from snakemake.io import is_flagged

    with tempfile.NamedTemporaryFile(dir=".") as file:  # the disk's own clock may differ from this machine's
        now = max(time.time(), Path(file.name).stat().st_mtime)
    inputs = (path for job in workflow.dag.needrun_jobs() for path in job.input if not is_flagged(path, "ancient"))
    for path in dict.fromkeys(map(str, inputs)):
        try:
            ahead = Path(path).stat().st_mtime - now
        except FileNotFoundError:  # it is yet to be made
            continue
        if ahead > CLOCK_SKEW:
            raise TriptychError(
                f"{path} is dated {duration(ahead)} ahead of the clock, and what is made of it would be made again at "
                f"every start; set the clock if it is wrong, or else: touch {shlex.quote(path)}"
            )


@_soft("changed settings are not noticed for jobs that ended after their Snakemake was killed")
def record_unwatched(workflow: Any) -> None:
    """Record what jobs left whose Snakemake was killed: without a record, no change of settings would be noticed."""
    from snakemake.common import async_run

    for job in workflow.dag.jobs:
        if job.output and not workflow.dag.needrun(job) and not workflow.persistence.has_metadata(job):
            async_run(workflow.persistence.finished(job))


@_soft("steps that share a job of the cluster may run at once, and what they finish is lost with a job that fails")
def run_groups(workflow: Any) -> None:
    """Let steps that share a job of the cluster run one after the other, and let each stand for itself.

    Snakemake hands neither limits of resources nor `keep-going` on to jobs. Of a group that fails, it removes all
    outputs, also of the steps that ended well, and runs all of them again.
    """
    from snakemake.jobs import GroupJob
    from snakemake.resources import Resource
    from snakemake.scheduling.job_scheduler import JobScheduler

    workflow.global_resources["lane"] = Resource("lane", 1)
    workflow.resource_scopes["lane"] = "local"
    if getattr(GroupJob.postprocess, "keeps_finished", False):
        return  # this workflow is read a second time, as a module
    postprocess, attempt, begin = GroupJob.postprocess, GroupJob.attempt, JobScheduler.__init__

    def begin_scheduler(self: Any, workflow: Any, *arguments: Any, **options: Any) -> None:
        begin(self, workflow, *arguments, **options)
        if workflow.remote_exec and len(workflow.dag_settings.target_jobs) > 1:
            self.keepgoing = True
            os.environ[TOGETHER] = json.dumps([list(spec) for spec in workflow.dag_settings.target_jobs])

    async def postprocess_group(self: Any, error: bool = False, **options: Any) -> None:
        if not error or not await _settle_failed_group(self):
            await postprocess(self, error=error, **options)

    def try_again(self: Any, number: int) -> None:
        attempt.fset(self, number)
        left = frozenset(job for job in self.jobs if not self.dag.finished(job))
        if left and left != self.jobs:
            self.__init__(self.groupid, left, self.global_resources)
            self._attempt = number
            self.finalize()

    postprocess_group.keeps_finished = True
    JobScheduler.__init__ = begin_scheduler
    GroupJob.postprocess, GroupJob.attempt = postprocess_group, attempt.setter(try_again)


async def _settle_failed_group(group: Any) -> bool:
    """Count the steps of a failed group that ended well as finished, and clean up after the others.

    A step ended well if the job's own Snakemake took the mark away with which it began, and left its outputs. Files
    that steps update are left as they are, and marked: the steps know which of their answers may stay.

    Returns:
        Whether it is settled; not where all ended well, because a group is never empty.
    """
    from snakemake.io import is_flagged

    dag = group.dag
    persistence = dag.workflow.persistence
    persistence._clear_cache()

    async def ended_well(job: Any) -> bool:
        return all(Path(path).exists() for path in job.output) and not await persistence.incomplete(job)

    well = {job: await ended_well(job) for job in group}
    if all(well.values()):
        return False
    for job, ended in well.items():  # in the order of the work
        if ended:
            await job.postprocess(check_output_mtime=False)
            dag.register_running({job})
            await dag.finish(job)
        elif not any(is_flagged(path, "update") for path in job.output):
            await job.postprocess(error=True)
    return True


@_soft("the log of a step that was killed does not say so")
def explain_kills() -> None:
    """Write into the log of a step that was killed what happened: by its own Snakemake, or by what SLURM says of it."""
    from snakemake.executors import local
    from snakemake_interface_executor_plugins.executors.base import AbstractExecutor

    run, report = local.run_wrapper, AbstractExecutor.report_job_error
    if hasattr(run, "__wrapped__"):
        return  # this workflow is read a second time, as a module
    names = list(inspect.signature(run).parameters)

    @functools.wraps(run)
    def watched(*arguments: Any) -> Any:
        before = kills_for_memory()
        try:
            return run(*arguments)
        except BaseException as error:
            given = dict(zip(names, arguments, strict=True))
            if exit_status(error) in KILLED and given["log"]:
                more = None if before is None else (kills_for_memory() or 0) - before
                note_kill(Path(given["log"][0]), given["resources"], more)
            raise

    @functools.wraps(report)
    def reported(self: Any, job_info: Any, msg: str | None = None, **others: Any) -> None:
        if "OUT_OF_MEMORY" in (msg or ""):
            jobs = job_info.job if job_info.job.is_group() else [job_info.job]
            logs = [(Path(path), job) for job in jobs for path in job.log if Path(path).exists()]
            if logs:  # that of the step which ran
                log, job = max(logs, key=lambda pair: pair[0].stat().st_mtime)
                note_kill(log, job.resources, 1)
        report(self, job_info, msg, **others)

    local.run_wrapper, AbstractExecutor.report_job_error = watched, reported
