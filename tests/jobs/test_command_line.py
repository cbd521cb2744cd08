"""Settings from files and overrides: what they become, and what a mistake is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from hmr.errors import ConfigError
from rayhmr import command_line
from rayhmr.config import (
    BrowseJob,
    ClusterCheckJob,
    DemoJob,
    Dimension,
    EvaluateJob,
    FiguresJob,
    PredictJob,
    PrepareJob,
    ServeJob,
    TrainJob,
    TuneJob,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))
JOBS: dict[str, type[BaseModel]] = {
    "prepare": PrepareJob,
    "train": TrainJob,
    "tune": TuneJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
    "serve": ServeJob,
    "demo": DemoJob,
    "figures": FiguresJob,
    "browse": BrowseJob,
    "cluster_check": ClusterCheckJob,
}
RECIPES: dict[str, type[BaseModel]] = {"spin": TrainJob, "final": TrainJob, "t": TuneJob}
"""Published trainings and the study of T, by their own names."""


def written(folder: Path, text: str, name: str = "settings.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def complaint(job: type[BaseModel], files: list[str], overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        command_line.load(job, files, overrides)
    return str(caught.value)


def script(*arguments: str, job: str = "evaluate") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    first = written(tmp_path, "train: {epochs: 3, batch_size: 8}\nname: a\n", "1.yaml")
    second = written(tmp_path, "train: {epochs: 5}\n", "2.yaml")
    job = command_line.load(TrainJob, [first, second], ["train.optimizer.lr=0.5", "name=b"])
    assert (job.train.epochs, job.train.batch_size) == (5, 8)
    assert (job.train.optimizer.lr, job.name) == (0.5, "b")
    untouched = command_line.load(TrainJob, [], [])
    assert untouched == TrainJob()


@pytest.mark.parametrize("text", ["3e-4", "3E-04", "0.3e-3", "0.0003", "+3.e-4"])
def test_every_way_to_write_a_small_number_is_a_number(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, f"train: {{optimizer: {{lr: {text}}}}}\n")
    assert command_line.load(TrainJob, [file], []).train.optimizer.lr == 3e-4
    space = [f"space={{train.optimizer.lr: {{choice: [{text}, abc, true]}}}}"]
    choice = command_line.load(TuneJob, [], space).space["train.optimizer.lr"].choice
    assert choice == [3e-4, "abc", True]
    assert isinstance(choice[0], float)


@pytest.mark.parametrize(
    ("job", "override", "said"),
    [
        (TrainJob, "train.epoch=3", "train.epoch: unknown key -- did you mean train.epochs?"),
        (TrainJob, "trian.epochs=3", "trian: unknown key -- did you mean train?"),
        (TrainJob, "train.lr=1", "did you mean train.optimizer.lr?"),
        (TuneJob, "space={model.n_iter: {chioce: [1]}}", "space.model.n_iter.choice"),
        (TrainJob, "scaling.zzz=1", "valid: scaling.num_workers, scaling.use_gpu"),
        (TrainJob, "train.epochs=0", "train.epochs: Input should be greater than or equal to 1"),
        (TrainJob, "train.epochs=many", "train.epochs: Input should be a valid integer"),
        (TrainJob, "name=", "name: Input should be a valid string (got None)"),
        (TrainJob, "name=a/b", "name: String should match pattern"),
        (FiguresJob, "box=[1, 2, 3, 4]", "box names a person in a photo: set image"),
        (EvaluateJob, "split=holdout", "Input should be 'train', 'val' or 'test'"),
        (TrainJob, "train.epochs", "overrides have the form key=value"),
        (TrainJob, "train={epochs: [1}", "'train={epochs: [1}': not valid YAML"),
        (TrainJob, "train={epochs: 1, epochs: 2}", "key 'epochs' stands twice"),
        (TuneJob, "space={a: {low: 2, high: 1}}", "low (2.0) must be below high (1.0)"),
        (TuneJob, "space={a: {low: 0, high: 1, log: true}}", "a logarithmic range needs low > 0"),
        (TuneJob, "space={a: {low: 1}}", "give either `choice`, or both `low` and `high`"),
    ],
)
def test_a_wrong_override_names_path_rule_and_cure(
    job: type[BaseModel], override: str, said: str
) -> None:
    assert said in complaint(job, [], [override])


def test_all_mistakes_are_told_at_once() -> None:
    text = complaint(TrainJob, [], ["train.epochs=0", "data.paht=x", "scaling.num_workers=-1"])
    assert len(text.splitlines()) == 4
    assert "(got 0)" in text
    assert "(got -1)" in text
    assert "data.path" in text


def test_nothing_can_be_set_below_a_value() -> None:
    text = complaint(TuneJob, [], ["trial.body=embedded", "trial.body.backend=smplx"])
    assert text.startswith("trial.body.backend: 'trial.body' is the value 'embedded'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  epochs: 3\n  epochs: 4\n", "key 'epochs' stands twice (line 3)"),
        ("train: [1\n", "not valid YAML"),
        ("- 1\n- 2\n", "must hold `key: value` lines"),
        ("train.epochs: 3\n", "one level for each dot"),
        ("? [1, 2]\n: 3\n", "unhashable"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    message = complaint(TrainJob, [file], [])
    assert said in message
    assert file in message or message.startswith("config error")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in complaint(TrainJob, [str(tmp_path / "none.yaml")], [])
    (tmp_path / "latin.yaml").write_bytes("name: \xe9t\xe9\n".encode("latin-1"))
    assert "not a readable text" in complaint(TrainJob, [str(tmp_path / "latin.yaml")], [])
    assert command_line.load(TrainJob, [written(tmp_path, "# nothing\n")], []) == TrainJob()


def test_set_dotted_leaves_its_argument_alone() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    changed = command_line.set_dotted(tree, "a.b", 9)
    assert changed == {"a": {"b": 9, "c": 2}, "d": 3}
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}
    assert command_line.set_dotted({}, "x.y.z", 1) == {"x": {"y": {"z": 1}}}


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.__name__)
def test_every_setting_has_help_and_a_default(job: type[BaseModel]) -> None:
    text = command_line._parser(job, None).format_help()
    leaves = [path for path in command_line.valid_paths(job) if f"  {path}=" in text]
    sections = {path.rpartition(".")[0] for path in command_line.valid_paths(job)}
    assert set(command_line.valid_paths(job)) == set(leaves) | (sections - {""})
    lines = text.split("settings (key=default):\n")[1].splitlines()
    for setting, explanation in zip(lines[::2], lines[1::2], strict=True):
        path, _, default = setting.strip().partition("=")
        json.loads(default)
        assert len(explanation.strip()) > 10, path
        assert explanation.startswith("      ")


def test_help_shows_what_a_searched_setting_consists_of() -> None:
    text = command_line._parser(TuneJob, None).format_help()
    for name in Dimension.model_fields:
        assert f"  space.<key>.{name}=" in text


@pytest.mark.parametrize(
    "file", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_shipped_file_loads(file: Path) -> None:
    prefix = file.stem.partition("_")[0]
    assert prefix in JOBS | RECIPES, f"{file.name}: begins with none of {sorted(JOBS)}"
    kind = (JOBS | RECIPES)[prefix]
    job = command_line.load(kind, [str(file)], [])
    again = command_line.validate(kind, job.model_dump(mode="json"))
    assert again.model_dump() == job.model_dump()


def test_script_prints_the_settings_it_would_use() -> None:
    done = script("split=val", "--print-config", "batch_size=7")
    assert done.returncode == 0, done.stderr
    printed = command_line.validate(EvaluateJob, yaml.safe_load(done.stdout))
    assert printed == EvaluateJob(split="val", batch_size=7)


def test_script_ends_with_2_for_a_wrong_setting() -> None:
    done = script("splitt=val", "batch_size=0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "splitt: unknown key -- did you mean split?" in done.stderr
    assert "batch_size: Input should be greater than or equal to 1 (got 0)" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_ends_with_1_for_an_error_the_user_can_cure(tmp_path: Path) -> None:
    done = script(f"model={tmp_path}/none", f"data={tmp_path}/none")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("job", ["evaluate", "predict", "tune"])
def test_help_is_quick_and_starts_nothing(job: str) -> None:
    code = (
        f"import sys; sys.argv = ['{job}.py', '--help']\n"
        "import runpy\n"
        "try:\n"
        f"    runpy.run_path('jobs/{job}.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print('heavy:', sorted({'torch', 'ray', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "settings (key=default):" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_results_are_the_last_line_of_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "data: elsewhere\n")
    monkeypatch.setattr(sys, "argv", ["job", "batch_size=3", "--config", file, "split=val"])

    def main(job: EvaluateJob) -> dict[str, object]:
        sys.stdout.write("something on the way\n")
        return {"batch_size": job.batch_size, "data": job.data, "split": job.split}

    command_line.run(EvaluateJob, main)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"batch_size": 3, "data": "elsewhere", "split": "val"}


def test_bare_words_are_values_of_the_setting_that_takes_them() -> None:
    done = script("body", "--print-config", "rounds=2", job="benchmark")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert (printed["what"], printed["rounds"]) == (["body"], 2)
    both = script("body", "synthetic", "--print-config", job="benchmark")
    assert yaml.safe_load(both.stdout)["what"] == ["body", "synthetic"]
    wrong = script("boddy", job="benchmark")
    assert wrong.returncode == 2
    assert "what" in wrong.stderr
    assert "boddy" in wrong.stderr
    assert script("body", job="evaluate").returncode == 2, "where no setting takes them"
