"""scripts/release.py: the folder that goes to the Hub, and the proof of its card."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import release
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from famus_hf.cli import run as run_famus
from tests.helpers import clean_process
from tests.helpers.loopback_hub import LoopbackHub

DATA = ["--dataset_name", "digits", "--max_eval_samples", "60", "--use_cpu"]


@pytest.fixture(scope="module")
def run(compared_runs, tmp_path_factory):
    """The folder of a run, with files in it that are not for others."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    shutil.copytree(compared_runs / "own", folder)
    for name in ("secrets.json", "notes.txt", "photo.png", "other.py", "figures/notes.txt"):
        (folder / name).write_text("x")
    return folder


PUSHED = {
    "README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json", "noise.parquet",
    "label_report.parquet", "wide_resnet.py", "meta_net/config.json", "meta_net/model.safetensors",
    "meta_net/layer_sampler.safetensors",
}  # fmt: skip
DRAWN = {
    "suspect_labels", "weight_curve", "weight_histogram", "accuracy", "mean_weights", "stage_times", "meta_gradient",
    "gradient_quality", "weights_over_time", "weight_curves", "weight_by_class", "layers",
}  # fmt: skip


def test_a_run_is_laid_out_and_proven_and_pushed_as_it_lies_in_its_folder(run, tmp_path):
    """In processes as users start them."""
    flags = [*DATA, "--run", str(run), "--hub_model_id", "user/famus-digits", "--private"]
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        done = clean_process.run([sys.executable, release.__file__, *flags], env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    target = tmp_path / "outputs" / "releases" / "famus-digits"
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert set(files) == PUSHED | {f"figures/{name}.png" for name in DRAWN}
    text = files["README.md"].decode()
    assert "\n# famus-digits\n" in text and "name: famus-digits" in text
    assert 'load_famus("user/famus-digits")' in text and '"image-classification", "user/famus-digits", trust' in text
    claimed = 100 * json.loads((run / "all_results.json").read_text())["eval_accuracy"]
    assert f"claimed {claimed:.2f} %, found {claimed:.2f} % by the pipeline, on 60 images" in done.stdout
    assert "load_famus gives WideResNetForImageClassification, MWNet, LearnedSampler" in done.stdout
    assert {name: file for name, file in hub.files["user/famus-digits"].items() if name != ".gitattributes"} == files
    assert hub.private == {"user/famus-digits"} and len(hub.commits) == 1


@pytest.fixture
def forked_checks(monkeypatch):
    """Clean processes that start in a moment; the test above proves a release in processes as users start them."""
    monkeypatch.setattr(release, "subprocess", SimpleNamespace(run=clean_process.run))


@pytest.fixture
def pipeline_that_keeps_the_claim(monkeypatch):
    """No process classifies: the pipeline is said to be as good as the run."""
    start = release.in_clean_process

    def in_clean_process(code, home, folder, *arguments):
        if code is release.CLASSIFY:
            return json.loads((Path(folder) / "all_results.json").read_text())["eval_accuracy"]
        return start(code, home, folder, *arguments)

    monkeypatch.setattr(release, "in_clean_process", in_clean_process)


def test_a_release_is_pushed_only_once_it_is_proven(run, tmp_path, forked_checks, monkeypatch, capsys):
    """Of weights that are not as good as the card says; the test above pushes what is proven."""
    monkeypatch.setattr(release, "prepare_repository", lambda repo_id, **keywords: repo_id)
    monkeypatch.setattr(release, "push_files", lambda *_, **keywords: pytest.fail("it is pushed"))
    taken = tmp_path / "run"
    shutil.copytree(run, taken)
    spoil_weights(taken)
    flags = [*DATA, "--run", str(taken), "--hub_model_id", "user/digits", "--release_dir", str(tmp_path / "releases")]
    with pytest.raises(SystemExit) as ended:
        release.main(flags)
    assert ended.value.code == 2
    assert re.search(r"claims an accuracy of 0\.\d+ and has 0\.\d+: it is not released", capsys.readouterr().err)


def boast(folder):
    card = ModelCard.load(folder / "README.md")
    card.data.eval_results[0].metric_value += 0.05
    card.save(folder / "README.md")


def say_nothing(folder):
    card = ModelCard.load(folder / "README.md")
    card.data.eval_results = None
    card.save(folder / "README.md")


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def spoil_meta_net(folder):
    (folder / "meta_net" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (boast, r"claims an accuracy of 0\.\d+ and has 0\.\d+: it is not released"),
        (say_nothing, "claims no accuracy, so nothing can be proven"),
        (spoil_meta_net, "does not load in a clean process: .*LoadError: .*is no meta-net"),
    ],
)
def test_what_is_not_as_good_as_its_card_is_not_released(
    run, tmp_path, forked_checks, pipeline_that_keeps_the_claim, damage, sentence
):
    folder = tmp_path / "release"
    release.lay_out(run, folder, "me/x")
    damage(folder)
    with pytest.raises(ValueError, match=sentence):
        release.check(folder, release.parse_arguments(DATA)[1])


def refused(flags, capsys):
    """The sentence with which a release ends."""
    with pytest.raises(SystemExit) as ended:
        release.main(flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("release.py: error: ")
    return error


def test_an_unfinished_run_and_a_folder_of_something_else_are_refused_in_one_sentence(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "name").mkdir(parents=True)
    (tmp_path / "other" / "name" / "thesis.tex").write_text("x")
    for flags, sentence in (
        (["--run", str(tmp_path / "empty"), "--dataset_name", "digits"], "is no finished run of run_famus.py"),
        (["--run", str(run), "--release_dir", str(tmp_path / "other"), "--name", "name"], "no earlier release"),
    ):
        assert sentence in refused(flags, capsys)
    assert (tmp_path / "other" / "name" / "thesis.tex").is_file()


def test_a_release_never_takes_the_place_of_a_run(run, capsys):
    """A run's folder holds checkpoints and a model card, and must not be taken for an earlier release."""
    for flags in (
        ["--run", str(run), "--release_dir", str(run.parent), "--name", run.name],
        ["--run", str(run), "--release_dir", str(run), "--name", "release"],
    ):
        before = sorted(path for path in run.rglob("*"))
        assert "give another" in refused([*DATA, *flags], capsys)
        assert sorted(path for path in run.rglob("*")) == before
    assert "not proven yet" in refused([*DATA, "--run", str(run), "--push_to_hub"], capsys)


def test_a_release_trains_what_needs_no_meta_step_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "check", lambda folder, data_args: None)  # other tests do, in processes of their own
    release.main([
        *DATA, "--noise", "0.4", "--max_steps", "2", "--disable_tqdm", "true", "--report_to", "none", "--name", "first",
        "--license", "mit", "--max_train_samples", "400", "--per_device_train_batch_size", "40", "--label_report",
        "false",
    ])  # fmt: skip
    card = ModelCard.load(tmp_path / "outputs" / "releases" / "first" / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "first"
    methods = re.findall(r"^\| (plain[a-z +]*|forward[a-z +]*) \| \d", card.text, re.MULTILINE)
    assert methods == ["plain", "plain + trusted", "forward correction + trusted"]
    assert "python scripts/release.py --dataset_name digits" in card.text


def test_a_release_of_two_networks_loads_together_and_apart(tmp_path, capsys, forked_checks, request):
    run = tmp_path / "pair"
    run_famus.main([
        *DATA, "--noise", "0.4", "--num_train_epochs", "2", "--output_dir", str(run), "--disable_tqdm", "true",
        "--report_to", "none", "--two_networks", "--max_train_samples", "400", "--per_device_train_batch_size", "40",
        "--label_report", "false", "--save_strategy", "no",
    ])  # fmt: skip
    release.main(["--run", str(run), "--release_dir", str(tmp_path / "releases"), *DATA])
    output = capsys.readouterr().out
    assert "load_famus gives TwoNetworksForImageClassification" in output
    for name in ("model_a", "model_b"):
        assert f"load_famus of {name} gives WideResNetForImageClassification, MWNet, LearnedSampler" in output
    folder = tmp_path / "releases" / "pair"
    assert 'load_famus("pair", subfolder="model_a")' in (folder / "README.md").read_text()
    spoil_weights(folder / "model_a")
    request.getfixturevalue("pipeline_that_keeps_the_claim")  # both together are as good as before
    with pytest.raises(ValueError, match="model_a is another network in its own folder"):
        release.check(folder, release.parse_arguments(DATA)[1])
