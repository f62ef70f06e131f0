"""Spikes of the loss, and what a training prints."""

import pytest
import torch
from trainings import lora_model, run, stage
from triptych.train.guards import SPIKE_MIN_STEPS, spike_ratio
from triptych.train.parameters import count_parameters, parameter_table
from triptych.train.progress import Progress


def test_a_spike_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    losses = (2 + 0.2 * torch.randn(400, generator=generator)).tolist()
    progress = Progress()
    for loss in losses:
        progress.end_step(loss, 1.0, None)
    assert max(progress.spike_ratios) < 1, "noise makes no spikes"
    assert len(progress.spike_ratios) == 400 - SPIKE_MIN_STEPS
    falling = Progress()
    for step in range(400):
        falling.end_step(5 * 0.98**step, 1.0, None)
    assert max(falling.spike_ratios) < 1, "neither does learning"


def test_spikes_are_counted_and_said(capsys):
    progress = Progress()
    for step in range(100):
        progress.end_step(8.0 if step in (40, 41, 70) else 2.0 + 0.01 * (step % 5), 1.0, None)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["step 40", "step 41", "step 70"]
    assert "the loss is 8.0000, 3.7" in said[0]
    progress.learnt.samples = progress.learnt.tokens = 1
    metrics = progress.end_epoch(progress.learnt, 1.0)
    assert metrics["loss_spikes"] == 3
    assert metrics["loss_spike_ratio_max"] == pytest.approx(8 / (2.02 + 6 * 0.02), rel=0.02)
    assert not progress.spike_ratios and len(progress.recent) == 64, "the window goes on, the counts begin anew"


def test_losses_of_nothing_are_no_spikes():
    assert spike_ratio(9.0, [1.0] * (SPIKE_MIN_STEPS - 1)) is None
    assert spike_ratio(0.1, [0.0] * SPIKE_MIN_STEPS) < 1 < spike_ratio(0.2, [0.0] * SPIKE_MIN_STEPS)


def test_the_start_says_what_trains_and_what_is_frozen(samples, features, prompt, capsys):
    run(lora_model(), samples, features, prompt, stage(("lora",), epochs=2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["part", "trained", "frozen"],
        ["connector", "0", "1,600"],
        ["language", "model", "0", "19,552"],
        ["lora", "448", "0"],
    ]
    assert lines[4] == f"{2 * -(-len(samples) // 4)} steps of 4 samples in 2 epochs; 4 image tokens an image"
    run(lora_model(), samples, None, prompt, stage(("lora",), blind=True))
    assert "in 1 epochs; no images" in capsys.readouterr().out


def test_the_table_counts_by_name():
    counts = count_parameters([("regularisation.weight", torch.nn.Parameter(torch.ones(3, 4)))])
    assert counts == {"regularisation": {"trained": 12, "frozen": 0}}
    assert parameter_table(counts).splitlines()[1].split() == ["regularisation", "12", "0"]
