"""A program for `torchrun`: a training on a GPU's route, on the CPU; process 0 writes its metrics and weights."""

import json
import sys
from pathlib import Path

import torch
from conftest import PROMPT, TOKENS, make_features, make_questions, make_tokenizer
from safetensors.torch import save_file
from trainings import FP32, KEY, lora_model, stage, weights
from triptych.config.runtime import Runtime
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.train.distributed import print_on_first_rank, process_group, rank
from triptych.train.route import GPU
from triptych.train.trainer import Trainer

out = Path(sys.argv[1])
torch.nn.attention.flex_attention._validate_device = lambda *tensors: None
compile_module = torch.nn.Module.compile
torch.nn.Module.compile = lambda layer, **settings: compile_module(layer, backend="aot_eager", **settings)
prompt = prompt_tokens(make_tokenizer(), PROMPT)
samples = tokenise(make_questions(images=30, seed=8), prompt)
settings = stage(("connector", "lora"), rate=3e-3, epochs=2, batch_size=12)
with process_group(), print_on_first_rank():
    model = lora_model()
    runtime = Runtime(compile="always")
    rest = [make_features(TOKENS), prompt, settings, FP32, 0, KEY, None, runtime, GPU]
    trainer = Trainer(model, samples, samples[::3], *rest)
    trainer.setup()
    rows = list(trainer.run())
    if rank() == 0:
        save_file(weights(model), out / "weights.safetensors")
        (out / "rows.json").write_text(json.dumps(rows))
