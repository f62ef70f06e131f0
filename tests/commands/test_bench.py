"""The GPU's benchmark: its whole course on the CPU, what becomes of a part that fails, and `triptych bench`."""

import json
import multiprocessing
import time

import bench_gpu
import pytest
import yaml
from conftest import ROOT, toy_config
from triptych.commands import bench
from triptych.errors import TriptychError

LOCAL = ROOT / "profiles/local"


def test_all_parts_fit_into_the_time():
    assert sum(bench_gpu.BUDGET.values()) <= bench_gpu.LIMIT < 570


def test_the_whole_course_runs_on_a_cpu_as_a_job(world, tmp_path, capsys):
    config = {**toy_config(world), "pathvars": {"results": "found"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    study = ["--configfile", str(tmp_path / "study.yaml"), "--directory", str(tmp_path)]
    bench.main([*study, "--profile", str(LOCAL), "--tiny"])
    said = capsys.readouterr().out
    parts = json.loads((tmp_path / "found/bench-tiny.json").read_text())["parts"]
    assert {*parts, "tests"} == set(bench_gpu.BUDGET)
    assert "| stage 3 |" in said
    assert not [record for record in parts.values() if "error" in record]
    for name in ("stage 3", "stage 2", "stage 1", "Trainer"):
        assert parts[name]["samples_per_s"] > 0 and parts[name]["peak_mb"] > 0
    assert parts["stage 3"]["plan_flops_per_sample"] > 0 and parts["stage 3"]["graphs_in_steady_steps"] == 0
    assert len(parts["device"]["attention_first_s_cudnn_off"]) == 3 and parts["device"]["gemm_tflops"] > 0
    assert parts["answering"]["questions_per_s"] > 0 and parts["profile"]["step_ms"] > 0


def dies(part, tiny, seconds, out):
    raise SystemExit(3)


def sleeps(part, tiny, seconds, out):
    time.sleep(60)


@pytest.mark.parametrize(("what", "said"), [(dies, "ended with status 3"), (sleeps, "stopped after its 1 s")])
def test_a_part_that_fails_loses_no_other(what, said, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "measure", what)
    record = bench_gpu.run_part(multiprocessing.get_context("fork"), "device", True, 1.0, tmp_path / "x.part")
    assert said in record["error"] and record["seconds"] < 10


def test_a_part_that_has_no_time_is_skipped_and_one_that_fails_is_named(tmp_path, monkeypatch, capsys):
    records = iter([{"samples_per_s": 8.0}, {"error": "no"}])
    monkeypatch.setattr(bench_gpu, "run_part", lambda *_: next(records))
    words = ["bench_gpu.py", "--out", str(tmp_path / "bench.json"), "--parts", "stage 3", "Trainer"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(TriptychError, match="parts that failed: Trainer"):
        bench_gpu.main()
    monkeypatch.setattr("sys.argv", [*words, "--seconds", "5"])
    bench_gpu.main()
    found = json.loads((tmp_path / "bench.json").read_text())["parts"]
    assert found["stage 3"] == {"skipped": "5 s are left"} and "5 s are left" in capsys.readouterr().out
