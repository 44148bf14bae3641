"""The benchmark's statistics, its files, and going on after an interruption, with training replaced by a stand-in."""

import json
import re
import statistics
from pathlib import Path

import pytest

import benchmark

pytestmark = pytest.mark.usefixtures("one_thread")


def metrics(seed, *accuracies):
    epochs = [{"test_accuracy": accuracy, "seconds": 2.0} for accuracy in accuracies]
    return {
        "seed": seed,
        "dataset": "mnist",
        "params": 1000,
        "epochs": epochs,
        "final_test_accuracy": accuracies[-1],
        "train_seconds": 2.0 * len(epochs),
        "peak_memory_mb": 500,
        "threads": 2,
        "precision": "fp32",
    }


@pytest.fixture
def trained(monkeypatch):
    """(recipe, seed) of every run that the benchmark asks for; the first one with seed 3 is interrupted."""
    asked, interrupted = [], []

    def train_once(recipe, seed, data_dir, loader):
        asked.append((recipe, seed))
        if seed == 3 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return metrics(seed, 99.0, 99.4 + seed / 100), 9.0

    monkeypatch.setattr(benchmark, "train_once", train_once)
    return asked


def run(*argv):
    try:
        return benchmark.main([str(arg) for arg in argv])
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize("change", [{"dataset": "FashionMNIST"}, {"threads": 1}])
def test_runs_on_other_data_or_threads_are_refused(change, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    monkeypatch.setattr(benchmark, "train_once", lambda recipe, seed, *_: (metrics(seed, 99.0), 9.0))
    assert run("default", "--runs", 2, "--out", out) == 0
    monkeypatch.setattr(benchmark, "train_once", lambda recipe, seed, *_: ({**metrics(seed, 99.0), **change}, 9.0))
    [default] = json.loads(out.read_text())
    for recipes, refused in [(["default"], "default, seed 2"), (["default", "fast"], "fast, seed 0")]:
        out.write_text(before := json.dumps([default, *map(benchmark.new_result, recipes[1:])]))
        assert run(*recipes, "--runs", 3, "--out", out) == 2
        found = {"dataset": "mnist", "threads": 2, **change}
        assert f"{refused}: found {found}, expected " in capsys.readouterr().err
        assert out.read_text() == before


def test_a_file_belongs_to_one_benchmark_at_a_time(tmp_path, trained, capsys):
    out = tmp_path / "results.json"
    with benchmark.lock(out):
        assert run("default", "--runs", 1, "--out", out) == 2
    assert f"{out} is in use by another process" in capsys.readouterr().err
    assert not trained and run("default", "--runs", 1, "--out", out) == 0


def test_summary_by_hand():
    result = benchmark.new_result("default")
    for seed, final in enumerate((99.3, 99.4, 99.5, 99.6)):
        benchmark.add_run(result, metrics(seed, 98.0, 99.5, final), 9.0)
    assert result["mean"] == pytest.approx(99.45)
    assert result["std"] == pytest.approx(0.1291, abs=1e-4)  # sqrt((0.15² + 0.05² + 0.05² + 0.15²) / 3)
    half = 3.1824 * 0.12910 / 2  # Student's t for 3 degrees of freedom; sqrt(4) runs
    assert result["ci95"] == pytest.approx([99.45 - half, 99.45 + half], abs=2e-4)
    slow_start = {**metrics(9, 98.0, 99.5, 99.6), "train_seconds": 7.0}  # a second of it before the first epoch
    other = benchmark.new_result("default")
    benchmark.add_run(other, slow_start, 9.0)
    assert other["runs"][0]["seconds_to_target"] == 5.0
    summary = benchmark.summarise(result["runs"])
    assert (summary["reached"], summary["min"], summary["first_epoch"]) == (3, 99.3, 2)
    assert summary["seconds_to_target"] == 4.0
    assert [run["seconds_to_target"] for run in result["runs"]] == [4.0] * 4


def test_an_interrupted_benchmark_goes_on(tmp_path, trained, capsys):
    out = tmp_path / "results.json"
    command = ("default", "fast", "--runs", 3, "--seed", 2, "--out", out)
    assert run(*command) == 130
    [default, fast] = json.loads(out.read_text())
    assert [r["seed"] for r in default["runs"]] == [r["seed"] for r in fast["runs"]] == [2]
    trained.clear()
    assert run(*command) == 0
    assert trained == [("default", 3), ("fast", 3), ("default", 4), ("fast", 4)]
    assert [r["seed"] for r in json.loads(out.read_text())[0]["runs"]] == [2, 3, 4]
    assert (
        "| default | 1,000 | 2 | 3 | 99.430 ± 0.010 | 99.405 to 99.455 | 99.42 | 3 of 3 | 2 |"
        in capsys.readouterr().out
    )


def test_published_recipes_are_marked_with_their_loader(tmp_path, trained, capsys):
    assert run("net-9720", "--runs", 1, "--loader", "fast", "--out", tmp_path / "published.json") == 0
    assert "| net-9720 (fast loader) | 1,000 |" in capsys.readouterr().out
    assert run("net-9720", "--runs", 1, "--out", tmp_path / "published.json") == 2
    assert "another config" in capsys.readouterr().err


def test_table_and_pictures(tmp_path, trained, capsys):
    for name in ("default", "net-9720"):
        assert run(name, "--runs", 2, "--out", tmp_path / f"{name}.json") == 0
    capsys.readouterr()
    assert run("--table", tmp_path / "default.json", tmp_path / "net-9720.json") == 0
    assert capsys.readouterr().out.count("\n") == 4
    [published] = json.loads((tmp_path / "net-9720.json").read_text())
    (tmp_path / "net-9720.json").write_text(json.dumps([published, {**published, "recipe": "net-11034", "runs": []}]))
    assert run("--table", tmp_path / "default.json", tmp_path / "net-9720.json") == 0  # of an interrupted benchmark
    assert capsys.readouterr().out.count("\n") == 4
    for name in ("accuracy_over_seconds.png", "accuracy_over_parameters.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_other_runs_are_never_mixed_or_overwritten(tmp_path, trained, capsys, monkeypatch):
    out = tmp_path / "results.json"
    assert run("default", "--runs", 1, "--out", out) == 0
    before = out.read_text()
    for argv, expected in [
        (("fast", "--runs", 1), "another recipe: found ['default'], expected ['fast']"),
        (("default", "--runs", 1, "--seed", 5), "other seeds: found [0], expected 5 to 5"),
    ]:
        assert run(*argv, "--out", out) == 2
        assert expected in capsys.readouterr().err
    monkeypatch.setitem(benchmark.RECIPES, "default", {**benchmark.RECIPES["default"], "lr": 0.123})
    assert run("default", "--runs", 1, "--out", out) == 2
    assert "another config" in capsys.readouterr().err
    assert out.read_text() == before
    for damaged in (before[:-20], "{}x", '[{"recipe": "default"}]', "[1]", '{"runs": []}'):
        out.write_text(damaged)
        assert run("default", "--runs", 1, "--out", out) == 2
        assert "is not a benchmark's JSON" in capsys.readouterr().err
        assert out.read_text() == damaged


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nonsense", "--runs", "1", "--out", "x"], "found nonsense, expected one or more of default, fast"),
        (["--runs", "1", "--out", "x"], "found no recipe"),
        (["default", "--runs", "0", "--out", "x"], "--runs: found 0"),
        (["default", "--runs", "1"], "--runs N and --out FILE are needed"),
        (["--table", "missing.json"], "missing.json is not a benchmark's JSON (No such file or directory)"),
    ],
)
def test_bad_input(argv, expected, capsys):
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1


def test_train_once_returns_what_the_run_wrote(mnist_dir):
    """The one real process here, on few images."""
    metrics, seconds = benchmark.train_once("fast", 7, mnist_dir, "torchvision")
    assert metrics["dataset"] == "small (MNIST format)" and metrics["seed"] == 7 and metrics["target"] is None
    assert metrics["config"] == benchmark.RECIPES["fast"]
    assert metrics["total_seconds"] < seconds and metrics["peak_memory_mb"] > 100
    benchmark.add_run(benchmark.new_result("fast"), metrics, seconds)  # finds in them all that it wants


def test_a_run_that_fails_is_named(tmp_path):
    with pytest.raises(benchmark.RunError, match="fast, seed 7: .*does not exist"):
        benchmark.train_once("fast", 7, tmp_path / "missing", "torchvision")


def test_the_readme_shows_the_tables_of_the_committed_results():
    root = Path(__file__).parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    paths = sorted(root.glob("results/*.json"))
    assert paths
    for path in paths:
        results = benchmark.read_results(path)
        for result in results:
            if result["recipe"] in benchmark.RECIPES:  # the figures are those of today's recipes
                assert result["config"] == benchmark.RECIPES[result["recipe"]]
            if result["runs"]:
                summary = benchmark.summarise(result["runs"])  # the file's own summary is that of its runs
                assert all(result[name] == summary[name] for name in ("mean", "std", "ci95"))
        for line in benchmark.table(results):
            assert line in readme, line


def test_the_readme_claims_what_the_results_say():
    root = Path(__file__).parent
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    for recipe in benchmark.RECIPES:
        [result] = benchmark.read_results(root / f"results/{recipe}.json")
        summary = benchmark.summarise(result["runs"])
        claim = re.split(r"\*\*(?=\d)", readme.split(f"[results/{recipe}.json]")[0])[-1]  # from its bold figure on
        assert claim.startswith(f"{summary['mean']:.2f} ± {summary['std']:.2f}%"), recipe
        assert f"over {summary['n']} seeds" in claim, recipe
        assert re.findall(r"(\d+) reach 99.4%", claim) in ([], [str(summary["reached"])]), recipe
    for recipe in ("best", "fast", "tiny"):  # with the pooling that they had before
        runs = json.loads((root / f"results/{recipe}-max-pooling.jsonl").read_text())["runs"]
        summary = benchmark.summarise(runs)
        assert f"`{recipe}` {summary['mean']:.2f} ± {summary['std']:.2f}% ([log]" in readme


def test_the_readme_compares_times_as_the_results_say():
    root = Path(__file__).parent
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    side_by_side, fast, peer = (
        {r["recipe"]: benchmark.summarise(r["runs"])["seconds_to_target"] for r in benchmark.read_results(root / path)}
        for path in ("results/side-by-side.json", "results/fast.json", "results/side-by-side-fast.json")
    )
    assert min((s, name) for name, s in side_by_side.items() if name in benchmark.PUBLISHED and s)[1] == "net-9720"
    for seconds, text in [(fast["fast"], "**{:.0f} times less**"), (peer["fast"], "of the table, {:.0f} times less")]:
        assert text.format(peer["net-9720"] / seconds) in readme
    lines = (root / "results/side-by-side-two-threads.jsonl").read_text().splitlines()
    ours, theirs = (json.loads(line)["runs"] for line in lines)
    fast, peer = benchmark.summarise(ours), benchmark.summarise(theirs)
    assert peer["first_epoch"] is None
    whole, luckiest = peer["seconds_per_epoch"] * 20, min(run["seconds_to_target"] or 1e9 for run in theirs)
    assert f"20 epochs and {whole:.0f} s (it ends at {peer['mean']:.2f} ± {peer['std']:.2f}%)" in readme
    assert f"after epoch 9 and {luckiest:.0f} s" in readme
    seconds = fast["seconds_to_target"]
    assert (
        f"`fast` takes {seconds:.1f} s, mean {fast['mean']:.2f} ± {fast['std']:.2f}%: {luckiest / seconds:.0f} times"
        in readme
    )
    assert f"luckiest of these runs, {whole / seconds:.0f} times less than all 20 epochs" in readme


def test_the_readme_shows_the_committed_logs():
    root = Path(__file__).parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert (root / "results/default-run/log.txt").read_text().rstrip() in readme
    runs = [json.loads(path.read_text()) for path in sorted(root.glob("results/18-epochs/*/metrics.json"))]
    finals = [run["final_test_accuracy"] for run in runs]
    assert [run["seed"] for run in runs] == [3000, 3001, 3002] and all(len(run["epochs"]) == 18 for run in runs)
    assert f"{statistics.fmean(finals):.2f} ± {statistics.stdev(finals):.2f}%" in readme
