"""scripts/release.py: the folder that goes to the Hub, and the proof of its card."""

import json
import os
import shutil
import sys
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
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run_famus.main([
        *DATA, "--noise", "0.4", "--num_train_epochs", "2", "--output_dir", str(folder), "--disable_tqdm", "true",
        "--report_to", "none",
    ])  # fmt: skip
    return folder


def test_a_run_is_laid_out_and_proven_before_it_goes(run, tmp_path, capsys):
    for name in ("secrets.json", "notes.txt", "photo.png", "other.py", "figures/notes.txt"):
        (run / name).write_text("x")
    release.main(["--run", str(run), "--release_dir", str(tmp_path), "--name", "famus-digits", *DATA])
    target = tmp_path / "famus-digits"
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json",
        "noise.parquet", "label_report.parquet", "wide_resnet.py", "meta_net/config.json",
        "meta_net/model.safetensors", "meta_net/layer_sampler.safetensors", "figures/suspect_labels.png",
        "figures/weight_curve.png", "figures/weight_histogram.png", "figures/accuracy.png", "figures/mean_weights.png",
    }  # fmt: skip
    text = (target / "README.md").read_text()
    assert "\n# famus-digits\n" in text and "name: famus-digits" in text
    assert 'load_famus("famus-digits")' in text and '"image-classification", "famus-digits", trust' in text
    claimed = 100 * json.loads((run / "all_results.json").read_text())["eval_accuracy"]
    output = capsys.readouterr().out
    assert f"claimed {claimed:.2f} %, found {claimed:.2f} % by the pipeline, on 60 images" in output
    assert "load_famus gives WideResNetForImageClassification, MWNet, LearnedSampler" in output


def test_a_release_is_pushed_as_it_lies_in_its_folder(run, tmp_path):
    flags = [*DATA, "--run", str(run), "--hub_model_id", "user/digits", "--private"]
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        done = clean_process.run([sys.executable, release.__file__, *flags], env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        folder = tmp_path / "outputs" / "releases" / "digits"
        expected = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        assert {name: own for name, own in hub.files["user/digits"].items() if name != ".gitattributes"} == expected
        assert hub.private == {"user/digits"} and len(hub.commits) == 1


@pytest.fixture
def forked_checks(monkeypatch):
    """Clean processes that start in a moment; the tests above prove releases in processes as users start them."""
    monkeypatch.setattr(release, "subprocess", SimpleNamespace(run=clean_process.run))


@pytest.mark.parametrize("is_proven", [True, False])
def test_a_release_is_pushed_only_once_it_is_proven(run, tmp_path, forked_checks, monkeypatch, is_proven):
    pushed = []
    monkeypatch.setattr(release, "prepare_repository", lambda repo_id, **keywords: repo_id)
    monkeypatch.setattr(
        release, "push_files", lambda files, *_, **keywords: pushed.append(files) or SimpleNamespace(repo_url="there")
    )
    taken = tmp_path / "run"
    shutil.copytree(run, taken)
    if not is_proven:
        boast(taken)
    flags = [*DATA, "--run", str(taken), "--hub_model_id", "user/digits", "--release_dir", str(tmp_path / "releases")]
    if is_proven:
        release.main(flags)
    else:
        with pytest.raises(SystemExit) as ended:
            release.main(flags)
        assert "it is not released" in str(ended.value.code)
    assert len(pushed) == is_proven


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
        (spoil_weights, r"claims an accuracy of 0\.\d+ and has 0\.\d+: it is not released"),
        (spoil_meta_net, "does not load in a clean process: ValueError.*is no meta-net"),
    ],
)
def test_what_is_not_as_good_as_its_card_is_not_released(run, tmp_path, forked_checks, damage, sentence):
    folder = tmp_path / "release"
    release.lay_out(run, folder, "me/x")
    damage(folder)
    with pytest.raises(ValueError, match=sentence):
        release.check(folder, release.parse_arguments(DATA)[1])


def test_an_unfinished_run_and_a_folder_of_something_else_are_refused_in_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "name").mkdir(parents=True)
    (tmp_path / "other" / "name" / "thesis.tex").write_text("x")
    for flags, sentence in (
        (["--run", str(tmp_path / "empty"), "--dataset_name", "digits"], "is no finished run of run_famus.py"),
        (["--run", str(run), "--release_dir", str(tmp_path / "other"), "--name", "name"], "no earlier release"),
    ):
        with pytest.raises(SystemExit) as ended:
            release.main(flags)
        assert sentence in str(ended.value.code)  # a text, so that the exit code is 1
    assert (tmp_path / "other" / "name" / "thesis.tex").is_file()


def test_a_release_never_takes_the_place_of_a_run(run, tmp_path):
    """A run's folder holds checkpoints and a model card, and must not be taken for an earlier release."""
    for flags in (
        ["--run", str(run), "--release_dir", str(run.parent), "--name", run.name],
        ["--run", str(run), "--release_dir", str(run), "--name", "release"],
    ):
        before = sorted(path for path in run.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            release.main([*DATA, *flags])
        assert "give another" in str(ended.value.code)
        assert sorted(path for path in run.rglob("*")) == before
    with pytest.raises(SystemExit) as ended:
        release.main([*DATA, "--run", str(run), "--push_to_hub"])
    assert "not proven yet" in str(ended.value.code)


def test_a_release_trains_its_plain_baseline_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "check", lambda folder, data_args: None)  # other tests do, in processes of their own
    release.main([
        *DATA, "--noise", "0.4", "--num_train_epochs", "1", "--disable_tqdm", "true", "--report_to", "none",
        "--name", "first", "--license", "mit",
    ])  # fmt: skip
    card = ModelCard.load(tmp_path / "outputs" / "releases" / "first" / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "first"
    assert "| plain | " in card.text and "python scripts/release.py --dataset_name digits" in card.text


def test_a_release_of_two_networks_loads_together_and_apart(tmp_path, capsys, forked_checks):
    run = tmp_path / "pair"
    run_famus.main([
        *DATA, "--noise", "0.4", "--num_train_epochs", "2", "--output_dir", str(run), "--disable_tqdm", "true",
        "--report_to", "none", "--two_networks", "--max_train_samples", "400", "--per_device_train_batch_size", "40",
    ])  # fmt: skip
    release.main(["--run", str(run), "--release_dir", str(tmp_path / "releases"), *DATA])
    output = capsys.readouterr().out
    assert "load_famus gives TwoNetworksForImageClassification" in output
    for name in ("model_a", "model_b"):
        assert f"load_famus of {name} gives WideResNetForImageClassification, MWNet, LearnedSampler" in output
    folder = tmp_path / "releases" / "pair"
    assert 'load_famus("pair", subfolder="model_a")' in (folder / "README.md").read_text()
    spoil_weights(folder / "model_a")
    with pytest.raises(ValueError, match="model_a is another network in its own folder"):
        release.check(folder, release.parse_arguments(DATA)[1])
