"""Processes of many runs: one run, comparisons of settings, how time grows with size."""

import json
import tempfile
from unittest.mock import Mock

import pytest
import torch

from experiment.datasets import load_mnist
from experiment.errors import ExperimentError, FileError
from study import scaling, tune
from study.runs import ROOT, run_process


def test_a_process_returns_its_metrics_or_the_last_line_of_its_error(monkeypatch):
    for name, value in {"PYTHONPATH": "/mine", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)  # the last three are torchrun's, of which a run may not be part
    code = """if True:
        import json, os, pathlib, sys
        folder = pathlib.Path(sys.argv[-1])
        folder.mkdir()
        facts = {"argv": sys.argv[1:-1], "path": sys.path[:2]}
        facts["torchrun"] = [name for name in os.environ if name.endswith(("RANK", "WORLD_SIZE"))]
        (folder / "metrics.json").write_text(json.dumps(facts))"""
    metrics, seconds = run_process(["-c", code, 7])
    assert metrics == {"argv": ["7", "--out"], "path": [str(ROOT), "/mine"], "torchrun": []} and seconds > 0
    for code, expected in (("raise SystemExit('first\\nläst')", "läst"), ("raise SystemExit(3)", "exit code 3")):
        with pytest.raises(ExperimentError, match=f"^{expected}$"):
            run_process(["-c", code])
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Mock(side_effect=FileNotFoundError(2, "No usable one")))
    with pytest.raises(FileError, match="^the temporary folder cannot be written: No usable one; set TMPDIR to one"):
        run_process(["-c", ""])


def test_an_interrupted_comparison_continues(tmp_path, monkeypatch, capsys):
    asked, out, facts = [], tmp_path / "tune.jsonl", {"params": 1000, "train_images": 80, "torch": "2"}

    def run_process(argv):
        asked.append(" ".join(map(str, argv)))
        if len(asked) == 4:
            raise KeyboardInterrupt
        last = {"holdout_accuracy": 99.0 + len(asked) / 10, "holdout_loss": 0.02, "images": 150}
        return {**facts, "epochs": [{**last, "holdout_accuracy": 98.0}, last]}, 2.04

    monkeypatch.setattr(tune, "run_process", run_process)
    argv = ["fast", "--set", "", "--set", "--lr 2 --epochs 3", "--runs", "2", "--seed", "3", "--out", str(out)]
    assert tune.main([*argv, "--data-dir", "there"]) == 130
    assert tune.main([*argv, "--data-dir", "there"]) == 0
    end = "--target none --threads 1 --no-plots --holdout 10000 --data-dir there"
    cases = [(flags, seed) for seed in (3, 4) for flags in ("", "--lr 2 --epochs 3 ")]
    assert asked == [f"-m train --recipe fast {flags}--seed {seed} {end}" for flags, seed in (*cases, cases[-1])]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(f"{row['set']} ".lstrip(), row["seed"]) for row in rows] == cases
    assert [row["accuracy"] for row in rows] == [99.1, 99.2, 99.3, 99.5]
    last = {"loss": 0.02, "parameters": 1000, "passes": 3.75, "seconds": 2.0, "torch": "2"}
    asked_last = {"recipe": "fast", "set": "--lr 2 --epochs 3", "seed": 4, "split": "holdout", "accuracy": 99.5}
    assert rows[-1] == {**asked_last, **last, "machine": rows[0]["machine"]}
    means = "99.200 ± 0.141% (2)  fast \n99.350 ± 0.212% (2)  fast --lr 2 --epochs 3\n"
    assert capsys.readouterr().out == means
    last = {"test_accuracy": 99.9, "test_loss": 0.01, "images": 80}
    monkeypatch.setattr(tune, "run_process", lambda argv: asked.append(argv) or ({**facts, "epochs": [last]}, 1.0))
    assert tune.main([*argv[:3], "--runs", "1", "--seed", "3", "--test", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "99.900% (1)  fast \n" and "--holdout" not in asked[-1]


def test_scaling_trains_on_files_with_the_images_repeated(mnist_dir, tmp_path, monkeypatch):
    dataset, asked = load_mnist(mnist_dir), []
    scaling.repeat_images(tmp_path / "150.npz", dataset, 150)
    more = load_mnist(tmp_path / "150.npz")
    assert torch.equal(more.train.images, dataset.train.images.repeat(3, 1, 1, 1)[:150])
    assert torch.equal(more.train.labels, dataset.train.labels.repeat(3)[:150]) and len(more.test.labels) == 30
    metrics = ({"train_seconds": 1.5}, 2.0)
    monkeypatch.setattr(scaling, "run_process", lambda argv: asked.append(" ".join(map(str, argv))) or metrics)
    assert scaling.measure(1, 2, 150, 32, (4, 5, 6, 7, 8), tmp_path) == 1.5
    assert "--nproc-per-node 2" in asked[0] and f"--data-dir {tmp_path / '150.npz'} --threads 1" in asked[0]
    assert "--batch-size 32 --widths 4 5 6 7 8" in asked[0]
