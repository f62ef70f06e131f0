"""Where everything is below the results folder, said once: rules, steps and commands fill in these patterns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Data
SOURCE_FOLDER = "sources/{dataset}/"
SOURCE = "sources/{dataset}/manifest.json"
CANDIDATES = "sources/{dataset}/candidates.parquet"
SHARD = "data/{dataset}/shards/{scatteritem}.json"
DATA = "data/{dataset}/manifest.json"
QUESTIONS = "data/{dataset}/questions.parquet"
REJECTS = "data/{dataset}/rejects.parquet"
FOLDS = "data/{dataset}/folds{cut}.json"
FOLDS_TABLE = "data/{dataset}/folds{cut}.parquet"
AUDIT = "data/audit.json"
AUDIT_PAGE = "data/audit.md"
# Models and features
MODEL = "models/{role}{tag}/manifest.json"
MODEL_CONFIG = "models/{model}/config.json"
FEATURES = "features/{dataset}{tag}/manifest.json"
FEATURE_SHARDS = "features/shards"
# Trainings
CHECKPOINT_FOLDER = "checkpoints/{prefix}/{split}/seed{seed}"
CHECKPOINT = f"{CHECKPOINT_FOLDER}/manifest.json"
CONNECTOR = f"{CHECKPOINT_FOLDER}/connector.safetensors"
METRICS = f"{CHECKPOINT_FOLDER}/metrics.jsonl"
# Answers and probes
PREDICTION = "predictions/{prefix}/{fold}/seed{seed}{view}.parquet"
BASELINE_PREDICTION = "predictions/{baseline}/{fold}/untrained{view}.parquet"
CAPTION_PREDICTION = "predictions/{prefix}/shared{draw}/seed{seed}.parquet"
PROBE = "probes/{representation}/seed{seed}.parquet"
# Answers to a data set that nothing trains on; of split `shared` those out of its own training part
TRANSFER_PREDICTION = "transfer/{dataset}/{part}/{prefix}/{fold}/seed{seed}.parquet"
TRANSFER_BASELINE = "transfer/{dataset}/{part}/{baseline}/{split}/untrained.parquet"
OCCLUDED = "occlusion/features/{dataset}{tag}/manifest.json"
OCCLUSION = "occlusion/{prefix}/{fold}/seed{seed}.parquet"
# What people look at
TABLE = "tables/{table}"
TEST_TABLE = "tables/test/{table}"
TRANSFER_TABLE = "tables/transfer/{table}"
FIGURES = "figures/figures.md"  # their captions; the figures lie beside it
REPORT = "report.html"
RESULTS = "results.json"
WANDB = "wandb/runs.json"
# What `triptych doctor` found, and the logs of its jobs
DOCTOR = "doctor.json"
DOCTOR_JOBS = "logs/doctor"
BENCH = "bench.json"


@dataclass(frozen=True)
class Step:
    """What the jobs of a rule leave.

    Attributes:
        rule: name of the rule.
        each: what there is a job for; `config/wildcards.py` enumerates it.
        job: what tells one job from another: pattern of its log below `logs/` and of its times below `benchmarks/`.
        output: pattern of the file that it writes last; where the job's `view` names several, of one file for each.
    """

    rule: str
    each: str
    job: str
    output: str

    def outputs(self, wildcards: dict[str, Any]) -> list[str]:
        """Fill in the pattern of the output: a file for each view."""
        views = wildcards.get("view", "")
        each = views if isinstance(views, tuple) else (views,)
        return [self.output.format(**{**wildcards, "view": view}) for view in each]

    @property
    def log(self) -> str:
        """Pattern of the log."""
        return f"logs/{self.rule}{self.job}.log"

    @property
    def benchmark(self) -> str:
        """Pattern of the file in which Snakemake notes time and memory."""
        return f"benchmarks/{self.rule}{self.job}.jsonl"


# In the order of the work. The rules, status, plan and verify read this list: a new result is an entry here and a rule.
# Tables and figures, which take seconds, are left out.
STEPS = {
    step.rule: step
    for step in (
        Step("fetch_dataset", "data set", "/{dataset}", SOURCE),
        Step("check_images", "shard", "/{dataset}/{scatteritem}", SHARD),
        Step("prepare_dataset", "data set", "/{dataset}", DATA),
        Step("make_folds", "kind of folds", "{cut}", FOLDS),
        Step("audit_data", "study", "", AUDIT),
        Step("prepare_model", "model", "/{role}{tag}", MODEL),
        Step("encode_images", "features", "/{dataset}{tag}", FEATURES),
        Step("train_stage", "training", "/{prefix}/{split}/seed{seed}", CHECKPOINT),
        Step("predict", "prediction", "/{prefix}/{fold}/seed{seed}", PREDICTION),
        Step("predict_view", "prediction of one view", "/{prefix}/{fold}/seed{seed}{view}", PREDICTION),
        Step("predict_captions", "captions", "/{prefix}/seed{seed}{draw}", CAPTION_PREDICTION),
        Step("predict_baseline", "baseline", "/{baseline}/{fold}{view}", BASELINE_PREDICTION),
        Step("predict_transfer", "transfer", "/{dataset}/{part}/{prefix}/{fold}/seed{seed}", TRANSFER_PREDICTION),
        Step(
            "predict_transfer_baseline", "transfer baseline", "/{dataset}/{part}/{baseline}/{split}", TRANSFER_BASELINE
        ),
        Step("encode_occluded", "occluded features", "/{dataset}{tag}", OCCLUDED),
        Step("occlude", "occlusion", "/{prefix}/{fold}/seed{seed}", OCCLUSION),
        Step("probe", "probe", "/{representation}/seed{seed}", PROBE),
    )
}
MODEL_ANSWERS = ("predict", "predict_view", "predict_captions", "predict_transfer")  # rules in which a model is asked


def beside(pattern: str, wildcard: str) -> set[str]:
    """Name what other patterns put into the folder where a pattern has a folder named by a wildcard.

    Args:
        pattern: one of the patterns above, with a folder `{wildcard}` or one that begins so.
        wildcard: name of the wildcard.
    """
    parts = pattern.split("/")
    place = next(index for index, part in enumerate(parts) if part.startswith(f"{{{wildcard}}}"))
    others = [value.split("/") for name, value in globals().items() if name.isupper() and isinstance(value, str)]
    found = (other[place] for other in others if other[:place] == parts[:place] and len(other) > place)
    return {name for name in found if "{" not in name}


def fill(pattern: str, **values: object) -> str:
    """Fill in some names of a pattern; the others stay as they are."""
    for name, value in values.items():
        pattern = pattern.replace(f"{{{name}}}", str(value))
    return pattern


def below(results: Path, pattern: str, **values: object) -> Path:
    """Give the path of a result below a study's results folder; all names of the pattern are filled in."""
    return results / pattern.format(**values)
