"""A toy world: tiny random models, coloured squares with questions, and a study that trains on them in seconds."""

import io
import json
import os
import random
import re
import subprocess
import time
from pathlib import Path

import hub  # noqa: F401  (before transformers: huggingface_hub reads its address when it is imported)
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import quick_python
import torch
import yaml
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from triptych.config.datasets import SLAKE_VARIABLE
from triptych.config.models import FolderEncoder, FolderLanguageModel
from triptych.config.stages import Connector
from triptych.data.sources.base import Selection
from triptych.features import encode
from triptych.io.manifest import sha256_bytes, sha256_file, write_json
from triptych.io.parquet import write_table
from triptych.model.connector import build_connector
from triptych.model.prepare import prepare_model
from triptych.model.tokens import PromptTokens, prompt_tokens, tokenise
from triptych.model.vlm import VisionLanguageModel

ROOT = Path(__file__).parent.parent
CACHE = ROOT / (os.environ.get("TRIPTYCH_CACHE") or "cache")  # packages that the tests need are fetched into it
# For the tests on SLAKE alone: a variable of the user's must not reach the toy studies, which come before it.
SLAKE = os.environ.pop(SLAKE_VARIABLE, None)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: torch collapses where its threads outnumber cores
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
WORDS = [
    "[UNK]", "</s>", "user", "assistant", "image", "is", "this", "a", "an", "the", "what", "colour", "square", "?",
    "where", "it", "left", "right", "yes", "no", "describe", ".", "on", "MRI", "CT", "modality", *COLOURS,
]  # fmt: skip
PROMPT = "user <image> {question} assistant "
HIDDEN, FEATURES, TOKENS = 32, 16, 4


# Files by what their tests share and what takes minutes to make; the first mostly wait.
SHARED = {
    "test_slurm.py": "a cluster",
    "test_slurm_doctor.py": "a cluster",
    "test_slurm_groups.py": "a cluster",
    "test_workflow.py": "the finished study",
    "test_chaos.py": "the finished study",
    "test_ask.py": "the finished study",
    "test_classifier.py": "the finished study",
    "test_occlusion_steps.py": "the finished study",
    "test_plugs.py": "the finished study",
    "test_tutorial.py": "the finished study",
    "test_hub_study.py": "the study from the hub",
}


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no process is left with it alone in the end."""
    order = list(SHARED)
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in SHARED else len(order))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run the tests of one file, or of files that share something, in one of pytest-xdist's processes."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return SHARED.get(Path(file).name, file)

    config.option.loadscopereorder = False  # the order above holds
    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def own_caches():
    """Studies of the tests have caches of their own, whatever the environment names."""
    os.environ.pop("TRIPTYCH_CACHE", None)


@pytest.fixture(autouse=True)
def fixed_threads():
    """One thread and a fixed seed, so that a test's numbers are the same on every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_environment():
    """What a program sets for its children, run in this process, would reach the children of later tests."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def slept(monkeypatch):
    """The seconds that were to be waited, one after the other; nothing waits."""
    asked, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: asked.append(seconds) or sleep(min(seconds, 0.001)))
    return asked


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Padding and end are one token, as in SmolLM2: labels must be masked by position, never by this id.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="[UNK]",
        clean_up_tokenization_spaces=False,
    )


def make_llama(attention: str = "eager", heads: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def prompt(tokenizer) -> PromptTokens:
    return prompt_tokens(tokenizer, PROMPT)


def make_model(attention: str = "eager", connector: Connector | None = None) -> VisionLanguageModel:
    link = build_connector(connector or Connector(), FEATURES, HIDDEN, seed=3)
    return VisionLanguageModel(link, make_llama(attention))


@pytest.fixture
def model() -> VisionLanguageModel:
    """Connector on a tiny random Llama, fp32."""
    return make_model()


def make_features(tokens: int = TOKENS):
    """Image ids -> fixed random features (R, tokens, FEATURES), one image's independent of the others asked for."""

    def look_up(image_ids):
        return torch.stack(
            [
                torch.randn(tokens, FEATURES, generator=torch.Generator().manual_seed(sum(map(ord, name))))
                for name in image_ids
            ]
        )

    return look_up


@pytest.fixture
def features():
    return make_features()


def make_questions(images: int = 4, seed: int = 0) -> list[dict]:
    """Question rows over `images` images, one to four each, answers of one to three tokens."""
    generator = random.Random(seed)
    asked = [("what colour is it ?", list(COLOURS)), ("is it red ?", ["yes", "no"])]
    asked += [("where is the square ?", ["on the left", "right"]), ("what modality is this ?", ["MRI", "CT"])]
    rows = []
    for image in range(images):
        for question, answers in generator.sample(asked, generator.randint(1, 4)):
            row = {"question_id": f"q{len(rows)}", "image_id": f"image{image}"}
            rows.append({**row, "question": question, "answer": generator.choice(answers)})
    return rows


@pytest.fixture
def samples(prompt):
    return tokenise(make_questions(), prompt)


def chosen(items, seed):
    """Items in the order of a `Selection`, and rejects of those that are named more than once."""
    selection = Selection(seed)
    for item in items:
        selection.add(item)
    return iter(selection)


def image_bytes(colour: str, side: str, number: int = 0) -> bytes:
    """A square on a ground of its own for every number, so that no two images are the same or look alike."""
    speckles = np.random.default_rng(number).integers(0, 120, (32, 32, 3), np.uint8)
    picture = Image.fromarray(speckles)
    left = 2 if side == "left" else 18
    ImageDraw.Draw(picture).rectangle((left, 8, left + 11, 23), fill=COLOURS[colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_slake(folder: Path, subjects: int = 10) -> None:
    """A folder in SLAKE's layout: two images a subject, three questions an image."""
    generator = random.Random(0)
    parts: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for image in range(2 * subjects):
        colour, side = generator.choice(list(COLOURS)), generator.choice(["left", "right"])
        name = f"toy{image}/source.png"
        path = folder / "imgs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(colour, side, image))
        subject = image // 2
        part = "test" if subject == subjects - 1 else "validation" if subject == subjects - 2 else "train"
        asked = [("what colour is the square ?", colour, "OPEN", "Color")]
        asked += [
            ("where is it ?", side, "OPEN", "Position"),
            ("is it red ?", "yes" if colour == "red" else "no", "CLOSED", "Color"),
        ]
        for question, answer, answer_type, content in asked:
            parts[part].append(
                {
                    "img_id": image,
                    "img_name": name,
                    "question": question,
                    "answer": answer,
                    "q_lang": "en",
                    "location": "Head",
                    "modality": "CT" if subject % 2 else "MRI",
                    "answer_type": answer_type,
                    "base_type": "vqa",
                    "content_type": content,
                    "triple": ["vhead", "_", "_"],
                    "qid": sum(map(len, parts.values())),
                    "subject": f"subject{subject}",
                }
            )
    for part, records in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(records))


def write_captions(folder: Path, pictures: int = 24) -> None:
    generator = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(pictures):
        colour, side = generator.choice(list(COLOURS)), generator.choice(["left", "right"])
        (folder / f"{index}.png").write_bytes(image_bytes(colour, side, 1000 + index))
        lines.append(json.dumps({"image": f"{index}.png", "caption": f"a {colour} square on the {side}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def write_models(folder: Path) -> None:
    make_llama().save_pretrained(folder / "llama")
    make_tokenizer().save_pretrained(folder / "llama")
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=FEATURES,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "clip"
    )


def toy_config(world: Path) -> dict:
    """A study of two schedules on two folds over the toy world."""
    stage = {"epochs": 1, "batch_size": 8}
    return {
        "cache": str(world / "cache"),
        "seeds": [0],
        "models": {
            "vision_encoder": {"source": "folder", "folder": str(world / "models" / "clip")},
            "language_model": {"source": "folder", "folder": str(world / "models" / "llama"), "prompt": PROMPT},
        },
        "datasets": {
            "general": {
                "source": "caption-folder",
                "folder": str(world / "captions"),
                "sizes": [24],
                "validation_fraction": 0.2,
                "question": "describe the image .",
            },
            "medical": {"source": "slake-folder", "folder": str(world / "slake")},
        },
        "folds": {"dataset": "medical", "number": 2, "validation_fraction": 0.25},
        "lora": {"rank": 2, "alpha": 4},
        "stages": {
            "1": {"data": "general-24", "train": ["connector"], "learning_rate": {"connector": 1e-2}, **stage},
            "2": {"data": "medical", "train": ["connector"], "learning_rate": {"connector": 1e-2}, **stage},
            "3": {
                "data": "medical",
                "train": ["connector", "lora"],
                "learning_rate": {"connector": 1e-2, "lora": 1e-2},
                **stage,
            },
        },
        "schedules": [["1", "2", "3"], ["2", "3"]],
        "training": {"precision": "fp32"},
        "runtime": {"retrain_at_most": 2},
        "evaluation": {
            "max_new_tokens": 6,
            "batch_size": 5,
            "constrained": True,
            "probe": {"seeds": 1, "hidden": 8, "rare": 2},
        },
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Toy models, captions and a SLAKE folder on disk."""
    folder = tmp_path_factory.mktemp("world")
    write_models(folder / "models")
    write_captions(folder / "captions")
    write_slake(folder / "slake")
    return folder


KEY = "5ec2e7" * 6 + "5ec2"  # what a user's variables hold must be in no file


class Study:
    """A folder with a configuration and its results."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config

    @property
    def results(self):
        return self.folder / "results"

    def snakemake(self, *arguments: str) -> str:
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(self.config))
        command = [quick_python.start(), "-m", "snakemake", *arguments, "--snakefile", str(ROOT / "Snakefile")]
        command += ["--profile", str(ROOT / "profiles" / "local"), "--directory", str(self.folder)]
        command += ["--configfile", str(file)]
        environment = {**os.environ, "PYTHONPATH": "", "WANDB_API_KEY": KEY, "HF_TOKEN": KEY}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        text = result.stdout + result.stderr
        assert result.returncode == 0, text
        return text

    def planned(self) -> dict[str, int]:
        """Jobs per rule that a dry run names."""
        text = self.snakemake("--dry-run", "--quiet", "host")
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:")[1].split("total")[0].splitlines()[3:]
        return {line.split()[0]: int(line.split()[1]) for line in table if line.strip()}

    def trained(self) -> set[str]:
        """Checkpoints that a dry run would train."""
        text = self.snakemake("--dry-run")
        return {f"{prefix}/{split}" for prefix, split in re.findall(r"Train (\S+) on (\S+), seed", text)}


@pytest.fixture(scope="session")
def study(world, tmp_path_factory):
    """The finished toy study; whoever changes its files or its settings puts them back."""
    folder = tmp_path_factory.mktemp("study")
    study = Study(folder, toy_config(world))
    study.snakemake()
    return study


IMAGE_COLUMNS = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("sha256", pyarrow.string()),
    ]
)


def write_images(folder, pictures, first=0):
    """A data set whose n-th image is the same in every such data set."""
    rows = []
    for number in range(first, pictures):
        data = image_bytes(list(COLOURS)[number % 4], "left", number)
        image = {"bytes": data, "path": None}
        rows.append({"id": f"image{number}", "image": image, "width": 32, "height": 32, "sha256": sha256_bytes(data)})
    write_table(folder / "images", rows, IMAGE_COLUMNS)
    write_json(folder / "manifest.json", {"files": {"images": sha256_file(folder / "images")}})


@pytest.fixture
def image_sets(world, tmp_path):
    """Results with a toy encoder and data sets of 10 and 30 images."""
    settings = FolderEncoder(source="folder", folder=str(world / "models" / "clip"))
    prepare_model("vision_encoder", settings, tmp_path, tmp_path / "models" / "vision_encoder")
    for pictures in (10, 30):
        write_images(tmp_path / "data" / f"general-{pictures}", pictures)
    return tmp_path


def make_toy_data(folder: Path) -> None:
    """Questions and images as the prepare step leaves them."""
    generator = random.Random(7)
    questions = [{**row, "split": "train"} for row in make_questions(images=80, seed=1)]
    for part, seed in (("validation", 2), ("test", 3)):
        for row in make_questions(images=12, seed=seed):
            held = {name: f"{part}-{row[name]}" for name in ("question_id", "image_id")}
            questions.append({**row, **held, "split": part})
    columns = dict.fromkeys(("group", "answer_type", "content_type", "modality", "location"), "toy")
    images = []
    for image_id in dict.fromkeys(row["image_id"] for row in questions):
        data = image_bytes(generator.choice(list(COLOURS)), generator.choice(["left", "right"]))
        image = {"bytes": data, "path": f"{image_id}.png"}
        images.append({"id": image_id, "image": image, "width": 32, "height": 32, "sha256": sha256_bytes(data)})
    folder.mkdir(parents=True)
    for name, rows in {"questions.parquet": [row | columns for row in questions], "images": images}.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    write_json(folder / "manifest.json", {"files": {path.name: sha256_file(path) for path in sorted(folder.iterdir())}})


def make_inputs(world: Path, folder: Path) -> None:
    """All that a training reads, each in a folder of its own: data, features, language-model, vision-encoder."""
    settings = toy_config(world)["models"]
    language_model = FolderLanguageModel(**settings["language_model"])
    prepare_model("language_model", language_model, folder, folder / "language_model")
    prepare_model("vision_encoder", FolderEncoder(**settings["vision_encoder"]), folder, folder / "vision_encoder")
    make_toy_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [f"--data={folder / 'data'}", f"--encoder={folder / 'vision_encoder'}"]
        patch.setattr("sys.argv", ["encode", *arguments, f"--out={folder / 'features'}"])
        encode.main()


@pytest.fixture
def config(world) -> dict:
    return toy_config(world)


@pytest.fixture
def demo_config() -> dict:
    return yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's backward pass on a CPU, which torch computes but refuses to call: slow, for tests."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
