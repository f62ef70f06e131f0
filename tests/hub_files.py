"""Tiny repositories in the layouts of those of `config/config.yaml`: a SigLIP, a Llama, SLAKE, LLaVA-Pretrain."""

import io
import json
import random
import tempfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from conftest import COLOURS, image_bytes
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)
from vision_encoders import write_encoder

SIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {"README.md": b"# a model", "pytorch_model.bin": b"not opened", "modeling.py": b"raise SystemExit"}


def saved(*parts) -> dict[str, bytes]:
    """The files that `save_pretrained` of all parts writes."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def siglip() -> dict[str, bytes]:
    """Both towers, as the hub has them."""
    torch.manual_seed(2)
    text = {**SIDE, "vocab_size": 40, "max_position_embeddings": 8, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**SIDE, "image_size": 32, "patch_size": 16})
    return saved(SiglipModel(config), SiglipImageProcessor(size={"height": 32, "width": 32})) | OTHERS


def clip() -> dict[str, bytes]:
    """Both towers, as the hub has them."""
    torch.manual_seed(3)
    text = {**SIDE, "vocab_size": 40, "max_position_embeddings": 8}
    vision = {**SIDE, "image_size": 32, "patch_size": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return saved(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), processor) | OTHERS


def encoder(kind: str) -> dict[str, bytes]:
    """A vision encoder of any supported kind."""
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(kind, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())} | OTHERS


def tiny_llama(attention_heads: int = 4) -> dict[str, bytes]:
    """A Llama whose tokenizer reads any text byte by byte and begins it with <s>, in weights of two shards."""
    torch.manual_seed(4)
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=attention_heads,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return saved(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)) | OTHERS


def repositories(config: dict) -> tuple[dict, dict]:
    """What `config/config.yaml` names, tiny, and the commits at which it names them."""
    models, datasets = config["models"], config["datasets"]
    found = {
        models["vision_encoder"]["repo"]: (siglip(), models["vision_encoder"]["revision"]),
        models["language_model"]["repo"]: (tiny_llama(), models["language_model"]["revision"]),
        "datasets/liuhaotian/LLaVA-Pretrain": (llava_pretrain(), datasets["general"]["revision"]),
        "datasets/BoKelvin/SLAKE": (slake(), datasets["medical"]["revision"]),
    }
    return {repo: files for repo, (files, _) in found.items()}, {repo: pinned for repo, (_, pinned) in found.items()}


def downloaded(config: dict) -> dict[str, set[str]]:
    """The files of these that a study downloads: of a model neither code, nor pickles, nor the page."""
    model = {"config.json", "model.safetensors"}
    tokenizer = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    return {
        config["models"]["vision_encoder"]["repo"]: model | {"preprocessor_config.json"},
        config["models"]["language_model"]["repo"]: model | tokenizer,
        "datasets/liuhaotian/LLaVA-Pretrain": {"blip_laion_cc_sbu_558k.json", "images.zip"},
        "datasets/BoKelvin/SLAKE": {"train.json", "validation.json", "test.json", "imgs.zip"},
    }


def jpeg(number: int) -> tuple[bytes, str, str]:
    """A coloured square as JPEG, its colour, and its side."""
    generator = random.Random(number)
    colour, side = generator.choice(list(COLOURS)), generator.choice(["left", "right"])
    with io.BytesIO() as file:
        Image.open(io.BytesIO(image_bytes(colour, side, number))).save(file, "JPEG", quality=95)
        return file.getvalue(), colour, side


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return file.getvalue()


def slake(images: int = 20) -> dict[str, bytes]:
    """Three tables and imgs.zip, with masks, which are not used; three questions an image, and one in Chinese."""
    parts: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    members = {}
    for image in range(images):
        data, colour, side = jpeg(image)
        members |= {f"imgs/xmlab{image}/source.jpg": data, f"imgs/xmlab{image}/mask.png": b"mask"}
        members[f"imgs/xmlab{image}/detection.json"] = b"[]"
        asked = [
            ("What colour is the square?", colour, "OPEN", "Color", "en"),
            ("Where is it?", side, "OPEN", "Position", "en"),
            ("Is it red?", "Yes" if colour == "red" else "No", "CLOSED", "Color", "en"),
            ("在哪里?", side, "OPEN", "Position", "zh"),
        ]
        for question, answer, answer_type, content, language in asked:
            row = {"img_id": image, "img_name": f"xmlab{image}/source.jpg", "question": question, "answer": answer}
            row |= {"q_lang": language, "location": "Head", "modality": "CT" if image % 2 else "MRI"}
            row |= {"answer_type": answer_type, "base_type": "vqa", "content_type": content}
            part = "test" if image >= images - 2 else "validation" if image >= images - 4 else "train"
            row |= {"triple": ["vhead", "_", "_"], "qid": sum(map(len, parts.values()))}
            parts[part].append(row)
    tables = {f"{part}.json": json.dumps(rows, ensure_ascii=False).encode() for part, rows in parts.items()}
    return {**tables, "imgs.zip": zipped(members), "KG.zip": b"not used", "mask.txt": b"not used"}


def llava_pretrain(images: int = 24) -> dict[str, bytes]:
    """The pairs and images.zip."""
    pairs, members = [], {}
    for image in range(images):
        data, colour, side = jpeg(1000 + image)
        name = f"{image % 3:05d}/{image:09d}.jpg"
        members[name] = data
        turns = [{"from": "human", "value": "<image>\nDescribe."}]
        turns.append({"from": "gpt", "value": f"a {colour} square on the {side}"})
        pairs.append({"id": f"{image:09d}", "image": name, "conversations": turns})
    return {"blip_laion_cc_sbu_558k.json": json.dumps(pairs).encode(), "images.zip": zipped(members)}


IMAGE_CELL = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def image_table(columns: dict[str, list], features: dict | None = None) -> bytes:
    """A Parquet file as `datasets` pushes it to the hub: images as {bytes, path}, and what its columns are."""
    cells = [{"bytes": data, "path": None} if isinstance(data, bytes) else data for data in columns["image"]]
    table = pyarrow.table(
        {"image": pyarrow.array(cells, IMAGE_CELL), **{k: v for k, v in columns.items() if k != "image"}}
    )
    about = {"info": {"features": {"image": {"_type": "Image"}, **(features or {})}}}
    with io.BytesIO() as file:
        pyarrow.parquet.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps(about)}), file, row_group_size=100
        )
        return file.getvalue()


def questions_of(images: range, kinds: int = 3) -> dict[str, list]:
    """Rows image, question and answer about squares, as VQA-RAD and PathVQA have them: an image in several rows."""
    rows: dict[str, list] = {"image": [], "question": [], "answer": []}
    for image in images:
        data, colour, side = jpeg(2000 + image)
        asked = [("what colour is the square?", colour), ("is it red?", "yes" if colour == "red" else "no")]
        for question, answer in [*asked, ("where is it?", side)][:kinds]:
            for name, value in (("image", data), ("question", question), ("answer", answer)):
                rows[name].append(value)
    return rows


def vqa_rad(images: int = 8, shared: int = 2) -> dict[str, bytes]:
    """VQA-RAD's layout: parts train and test, which share some images; three questions an image in each."""
    return {
        "README.md": b"# VQA-RAD",
        "data/train-00000-of-00001-eb8844602202be60.parquet": image_table(questions_of(range(images))),
        "data/test-00000-of-00001-e5bc3d208bb4deeb.parquet": image_table(
            questions_of(range(images - shared, images + 4), 2)
        ),
    }


def path_vqa() -> dict[str, bytes]:
    """PathVQA's layout: three parts without a common image, train in several files."""
    return {
        "data/train-00000-of-00002-e156123ddc01cfef.parquet": image_table(questions_of(range(20, 26))),
        "data/train-00001-of-00002-685f0eb08e4d2a71.parquet": image_table(questions_of(range(26, 30))),
        "data/validation-00000-of-00001-3158cb1155ce6abe.parquet": image_table(questions_of(range(30, 32))),
        "data/test-00000-of-00001-2140e7d189eaefff.parquet": image_table(questions_of(range(32, 36))),
    }
