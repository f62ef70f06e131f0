"""Checkpoints that start from a LLaVA are exported as one, which transformers loads and a study may start from."""

import pytest
import torch
from conftest import image_bytes
from llavas import PROMPT, base_of, prepare_llava, write_llava
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from triptych.config.stages import Connector, Lora, Stage
from triptych.data.images import decode
from triptych.export.write import export
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.language_model import load_tokenizer
from triptych.model.packing import pack
from triptych.model.tokens import Sample, prompt_tokens

CPU = torch.device("cpu")
QUESTION, ANSWER = "what colour is the square ?", "red on the left"


def save_checkpoint(folder, models, lora):
    """A checkpoint with a trained projector and adapters; without adapters, the parent as it is."""
    _, base = base_of(models)
    model = checkpoint.build(base, None, Connector(), lora, 0, "fold0", torch.float32, CPU)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if lora and (name.startswith("connector") or "lora_B" in name):
                weight.add_(0.1 * torch.randn_like(weight))
    stage = Stage(data="medical", train=[]).model_dump()
    manifest = {
        "prefix": "original", "split": "fold0", "seed": 0, "connector": Connector().model_dump(), "blind": False,
        "stages": [{"original": stage}], "lora": lora and lora.model_dump(), "parent": None, "data": {}, "features": {},
        "precision": "float32", "samples": {"train": 2, "validation": 1}, "epoch": 0, **base.identity,
    }  # fmt: skip
    checkpoint.save(model, folder, manifest, '{"epoch": 0, "validation_loss": 1.0, "validation_accuracy": 0.5, '
                    '"validation_samples": 5}\n')  # fmt: skip
    return folder


def own_logits(source, models):
    """Logits of the answer, in Triptych."""
    encoder, base = base_of(models)
    model = checkpoint.load(base, source / "manifest.json", torch.float32, CPU)
    prompt = prompt_tokens(load_tokenizer(models / "language_model"), PROMPT)
    tokens = encoder.tokens(encoder.preprocess([decode(image_bytes("blue", "left"))]))
    sample = Sample("", "", prompt.encode_question(QUESTION), prompt.encode_answer(ANSWER))
    return model.answer_logits(pack([sample], lambda _: tokens, prompt, tokens.shape[1], 4096))


def plain_logits(folder, steps):
    """Logits of the same answer, of transformers' own class."""
    plain, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    text = PROMPT.replace("{question}", QUESTION) + ANSWER
    inputs = LlavaProcessor.from_pretrained(folder)(
        images=decode(image_bytes("blue", "left")), text=text, return_tensors="pt"
    )
    with torch.inference_mode():
        return plain(**inputs).logits[0, -steps:]


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=8)], ids=["original", "lora"])
def test_the_export_gives_the_logits_of_the_checkpoint(tmp_path, lora, strategy):
    llava = write_llava(tmp_path / "llava", vision_feature_select_strategy=strategy)
    models = prepare_llava(tmp_path / "models", llava)
    source = save_checkpoint(tmp_path / "checkpoint", models, lora)
    assert export(source, models, [], tmp_path / "export", adapter=False) == "llava"
    expected = own_logits(source, models)
    found = plain_logits(tmp_path / "export", len(expected))
    assert torch.allclose(found[:, : expected.shape[1]], expected, atol=1e-5)
    original = plain_logits(llava, len(expected))
    assert torch.allclose(original, expected, atol=1e-5) == (lora is None)
    config = read_json(tmp_path / "export" / "config.json")
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, strategy)

    # A further study may start from it.
    again = prepare_llava(tmp_path / "again", tmp_path / "export")
    child = save_checkpoint(tmp_path / "child", again, None)
    assert torch.allclose(own_logits(child, again)[:, : expected.shape[1]], expected, atol=1e-5)
