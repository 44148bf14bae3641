"""Processes of many runs: one run, comparisons of settings, how time grows with size."""

import json

import pytest
import torch

from experiment.datasets import load_mnist
from experiment.errors import ExperimentError
from study import report, scaling, tune
from study.runs import ROOT, run_process


def test_a_process_returns_its_metrics_or_the_last_line_of_its_error(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    code = """if True:
        import json, os, pathlib, sys
        folder = pathlib.Path(sys.argv[-1])
        folder.mkdir()
        facts = {"argv": sys.argv[1:-1], "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "path": sys.path[:2]}
        (folder / "metrics.json").write_text(json.dumps(facts))"""
    metrics, seconds = run_process(["-c", code, 7], CUDA_VISIBLE_DEVICES="3")
    assert metrics == {"argv": ["7", "--out"], "gpu": "3", "path": [str(ROOT), "/mine"]} and seconds > 0
    for code, expected in (("raise SystemExit('first\\nläst')", "läst"), ("raise SystemExit(3)", "exit code 3")):
        with pytest.raises(ExperimentError, match=f"^{expected}$"):
            run_process(["-c", code])


def test_an_interrupted_comparison_continues(tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "tune.jsonl"

    def run_process(argv):
        asked.append(" ".join(map(str, argv)))
        if len(asked) == 4:
            raise KeyboardInterrupt
        last = {"holdout_accuracy": 99.0 + len(asked) / 10, "holdout_loss": 0.02, "images": 150}
        return {"epochs": [{**last, "holdout_accuracy": 98.0}, last], "params": 1000, "train_images": 80}, 2.04

    monkeypatch.setattr(tune, "run_process", run_process)
    argv = ["fast", "--set", "", "--set", "--lr 2 --epochs 3", "--runs", "2", "--seed", "3", "--out", str(out)]
    assert tune.main([*argv, "--data-dir", "there"]) == 130
    assert tune.main([*argv, "--data-dir", "there"]) == 0
    end = "--holdout 10000 --target none --threads 1 --no-plots --data-dir there"
    cases = [(flags, seed) for seed in (3, 4) for flags in ("", "--lr 2 --epochs 3 ")]
    assert asked == [f"-m train --recipe fast {flags}--seed {seed} {end}" for flags, seed in (*cases, cases[-1])]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["set"], row["seed"], row["accuracy"]) for row in rows] == [
        (flags.strip(), seed, accuracy) for (flags, seed), accuracy in zip(cases, (99.1, 99.2, 99.3, 99.5))
    ]
    last = {"loss": 0.02, "parameters": 1000, "passes": 3.75, "seconds": 2.0}
    assert rows[-1] == {"recipe": "fast", "set": "--lr 2 --epochs 3", "seed": 4, "accuracy": 99.5, **last}
    means = "99.200 ± 0.141% (2)  fast \n99.350 ± 0.212% (2)  fast --lr 2 --epochs 3\n"
    assert capsys.readouterr().out == means


def test_scaling_measures_each_case_on_as_many_images_in_turn(mnist_dir, tmp_path, monkeypatch):
    asked = []

    def run_process(argv):
        asked.append(" ".join(map(str, argv)))
        found = load_mnist(argv[argv.index("--data-dir") + 1])
        original, count = load_mnist(mnist_dir), len(found.train.labels)
        for part, whole in zip((*found.train, *found.test), (*original.train, *original.test)):
            assert torch.equal(part, torch.cat([whole] * 3)[: len(part)])
        assert len(found.test.labels) == 30
        return {"train_seconds": count / 10 + len(asked), "peak_memory_mb": 500 + len(asked)}, 9.0

    monkeypatch.setattr(scaling, "run_process", run_process)
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    monkeypatch.setitem(scaling.BASE, "images", 100)
    cases = [{"images": 200}, {"threads": 1, "processes": 2}, {"batch_size": 32, "widths": (1, 2, 3, 4, 5)}]
    monkeypatch.setattr(scaling, "CASES", cases)
    (tmp_path / "results").mkdir()
    assert scaling.main(["--rounds", "2", "--data-dir", str(mnist_dir)]) == 0
    assert asked[:3] == asked[3:]
    train = f"{tmp_path / 'train.py'} --recipe one-epoch --target none --no-plots --data-dir"
    flags = "--threads 2 --batch-size 64 --widths 16 16 32 24 24"
    folder = asked[0].split("--data-dir ")[1].split("/200 ")[0]
    assert asked[:3] == [
        f"{train} {folder}/200 {flags}",
        f"-m torch.distributed.run --standalone --nproc-per-node 2 {train} {folder}/100 {flags.replace('2', '1', 1)}",
        f"{train} {folder}/100 --threads 2 --batch-size 32 --widths 1 2 3 4 5",
    ]
    lines = report.KINDS["scaling"]([tmp_path / "results" / "scaling.json"]).splitlines()
    assert lines[2:] == [
        "| images 200 | 22.5 | 504 |",
        "| threads 1, processes 2 | 13.5 | 505 |",
        "| batch size 32, widths [1, 2, 3, 4, 5] | 14.5 | 506 |",
    ]
