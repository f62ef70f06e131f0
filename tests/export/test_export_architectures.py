"""Plain transformers gives Triptych's answers with an export of every supported language model."""

import pytest
from conftest import WORDS, make_tokenizer
from models_page import tiny_model
from test_export import plain_answers, prepare, save_checkpoint, triptych_answers
from triptych.config.stages import Lora
from triptych.export.write import export
from triptych.model.architectures import ARCHITECTURES

CASES = [(kind, 5 if known.windows != "none" else None) for kind, known in ARCHITECTURES.items()]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("kind", "window"), CASES)
def test_an_export_of_each_architecture_gives_the_same_answers(world, tmp_path, kind, window, adapter):
    tiny_model(kind, window, vocab_size=len(WORDS)).save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    models = prepare(tmp_path / "models", {"folder": str(world / "models" / "clip")}, tmp_path / "text")
    lora = Lora(rank=2, alpha=4, target_modules=["qkv_proj"] if kind == "phi3" else ["q_proj", "v_proj"])
    source = save_checkpoint(tmp_path / "checkpoint", models, lora)
    assert export(source, models, [], tmp_path / "out", adapter) == "llava"
    assert plain_answers(tmp_path / "out", adapter=adapter) == triptych_answers(source, models)
