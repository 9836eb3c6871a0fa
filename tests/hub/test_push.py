"""Pushing to the Hub: checkpoints to go on from, faults of every kind, nothing stale, no token anywhere."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from famus_hf.hub.client_errors import hub_reason
from famus_hf.hub.load import files_to_push
from tests.helpers import clean_process
from tests.helpers.command_line import SMALL
from tests.helpers.hostile import PICKLES
from tests.helpers.saved_runs import PUSHED, save_run, trained_ensemble
from tests.helpers.trainers import make_trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_faults_left(hub):
    yield
    hub.faults.clear()


def same(one, other):
    one, other = torch.load(one), torch.load(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_a_sentence(text, *parts):
    """One sentence, without a traceback, that says these things."""
    assert text is not None and "\n" not in text.strip() and "Traceback" not in text and len(text) < 700, text
    for part in parts:
        assert part in text, text


# ---- last-checkpoint ----


def test_a_run_goes_on_from_the_hub_bit_for_bit(hub, client, tmp_path):
    whole, parts, elsewhere = tmp_path / "whole", tmp_path / "parts", tmp_path / "elsewhere"
    client.done("train", folder=whole, repo="user/whole")
    client.done("train", folder=parts, repo="user/parts", stop_at=3)
    assert client.done("train", folder=elsewhere, repo="user/parts", resume="user/parts").result == 6
    assert same(whole / "final.pt", elsewhere / "final.pt")
    assert not same(whole / "final.pt", parts / "final.pt")


def test_two_processes_go_on_from_the_hub_bit_for_bit_and_one_does_not(hub, client, tmp_path):
    whole, parts, elsewhere = tmp_path / "whole", tmp_path / "parts", tmp_path / "elsewhere"
    client.done("train_in_two", folder=whole, repo="user/whole-two")
    client.done("train_in_two", folder=parts, repo="user/by-two", stop_at=3)
    client.done("train_in_two", folder=elsewhere, repo="user/by-two", resume="user/by-two")
    for rank in (0, 1):
        assert same(whole / f"final-{rank}.pt", elsewhere / f"final-{rank}.pt")
    answer = client.call("train", folder=tmp_path / "one", repo="user/one", resume="user/by-two", meta_learner="none")
    assert_a_sentence(answer.error, "saved by 2 processes and this run has 1")
    assert not list((tmp_path / "one").glob("checkpoint-*"))


def test_a_pushed_checkpoint_has_no_pickle_and_no_path_of_the_machine(hub, client, tmp_path):
    client.done("train", folder=tmp_path / "run", repo="user/portable", stop_at=3, eval_strategy="steps", eval_steps=3,
                load_best_model_at_end=True, metric_for_best_model="loss")  # fmt: skip
    pushed = hub.files["user/portable"]
    assert {
        "config.json", "model.safetensors", "last-checkpoint/trainer_state.json", "last-checkpoint/state.json",
        "last-checkpoint/state.safetensors", "last-checkpoint/model.safetensors",
        "last-checkpoint/meta_net/config.json", "last-checkpoint/trained_on.json",
    } <= set(pushed)  # fmt: skip
    assert not [name for name in pushed if name.endswith(PICKLES)]
    assert not [name for name, content in pushed.items() if str(tmp_path).encode() in content]
    assert not [name for name, content in pushed.items() if content[:2] in (b"\x80\x02", b"\x80\x04", b"PK")]
    assert len([name for name in pushed if name.startswith("last-checkpoint/")]) < 12


def test_selection_starts_over_where_the_best_checkpoint_stayed_behind(hub, client, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True,
                "metric_for_best_model": "loss"}  # fmt: skip
    for name, better, best in (("best-last", False, 4), ("best-first", True, None)):
        folder = tmp_path / name
        client.done("train", folder=folder, repo=f"user/{name}", stop_at=4, greater_is_better=better, **settings)
        found = json.loads(hub.files[f"user/{name}"]["last-checkpoint/trainer_state.json"])
        assert found["best_model_checkpoint"] is None and found["best_global_step"] == (best or 2)
        answer = client.done("fetch", folder=tmp_path / f"{name}-2", repo=f"user/{name}", **settings)
        state = json.loads((Path(answer.result) / "trainer_state.json").read_text())
        assert (state["best_global_step"], state["best_model_checkpoint"]) == (best, best and answer.result)
        assert (state["best_metric"] is None) == (best is None)
        assert [bool("selection starts over" in line) for line in answer.log] == ([] if best else [True])


def test_files_that_are_no_checkpoints_are_neither_downloaded_nor_kept(hub, client, tmp_path):
    client.done("train", folder=tmp_path / "run", repo="user/extra", stop_at=3)
    hub.files["user/extra"]["last-checkpoint/optimizer.pt"] = b"\x80\x04."
    hub.files["user/extra"]["last-checkpoint/evil.py"] = b"raise SystemExit"
    hub.files["user/extra"]["last-checkpoint/more.json"] = b"{}"
    hub.requests.clear()
    found = Path(client.done("fetch", folder=tmp_path / "again", repo="user/extra").result)
    assert not [line for line in hub.requests if "evil" in line or "optimizer.pt" in line]
    assert not (found / "evil.py").exists() and not (found / "more.json").exists()
    assert (found / "optimizer.pt").stat().st_size > 100 and not (tmp_path / "again" / ".unfinished").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, None, "it has no last-checkpoint/, which a run with hub_strategy='checkpoint' pushes"),
        ("last-checkpoint/state.json", b" " * (2**24 + 1), "has 16777217 bytes, and at most 16777216 are read"),
        ("last-checkpoint/model.safetensors", b" " * (2**28 + 2**22), "go with this network"),
    ],
    ids=["none", "long JSON", "large tensors"],
)
def test_a_repository_without_a_checkpoint_of_sound_size_is_refused(hub, client, tmp_path, name, content, words):
    hub.files["user/unsound"] = {"config.json": b"{}"} if name is None else {name: content}
    hub.requests.clear()
    answer = client.call("train", folder=tmp_path, repo="user/unsound-2", resume="user/unsound")
    assert_a_sentence(answer.error, "HubError: no run can go on from 'user/unsound' on the Hub", words)
    assert not [line for line in hub.requests if "resolve" in line]
    hub.files.pop("user/unsound")


def test_the_command_line_goes_on_from_the_hub(hub, client, tmp_path):
    run = [*SMALL, "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no"]
    first = [*run, "--max_steps", "2", "--output_dir", str(tmp_path / "first"), "--push_to_hub", "true",
             "--hub_model_id", "user/cli", "--hub_strategy", "checkpoint"]  # fmt: skip
    client.done("run_famus", argv=first)
    ends = {}
    for name, wanted in (("hub", "user/cli"), ("disk", str(tmp_path / "first" / "checkpoint-2"))):
        flags = ["--max_steps", "4", "--output_dir", str(tmp_path / name), "--resume_from_checkpoint", wanted]
        client.done("run_famus", argv=[*run, *flags])
        assert json.loads((tmp_path / name / "all_results.json").read_text())["global_step"] == 4
        ends[name] = [(tmp_path / name / part).read_bytes() for part in ("model.safetensors", "noise.parquet")]
    assert ends["hub"] == ends["disk"]
    for wanted, words in (("user/nowhere", "no such repository"), ("user/cli", "at most")):
        flags = ["--output_dir", str(tmp_path / "no"), "--resume_from_checkpoint", wanted]
        hub.files["user/cli"]["last-checkpoint/state.json"] = b" " * 2**25
        answer = client.call("run_famus", argv=[*run, *flags])
        assert answer.error == "SystemExit: 2"
        line = answer.printed.strip().splitlines()[-1]
        assert_a_sentence(line, f"run_famus.py: error: no run can go on from '{wanted}' on the Hub", words)


def test_a_branch_to_resume_from_is_that_of_hub_revision(hub, client, tmp_path):
    client.done("train", folder=tmp_path / "run", repo="user/main", stop_at=3)
    settings = {"folder": tmp_path / "again", "repo": "user/main", "push_to_hub": False}
    assert client.done("fetch", **settings, hub_revision="main").result
    answer = client.call("fetch", **settings, hub_revision="nowhere")
    assert_a_sentence(
        answer.error, "no run can go on from 'user/main' on the Hub: there is no such repository or branch"
    )


def test_a_push_takes_the_words_of_trainers(hub, client, tmp_path):
    """Message, branch, privacy, and what goes on the card, as transformers' example scripts give it."""
    words = {"commit_message": "Mine", "private": True, "revision": "main", "tags": "own", "language": "en",
             "dataset_tags": "glue", "dataset": "GLUE SST2"}  # fmt: skip
    settings = {"max_steps": 1, "push_to_hub": False, "hub_model_id": "user/worded"}
    client.done("train", folder=tmp_path / "a", repo="user/worded", push=words, **settings)
    card = hub.files["user/worded"]["README.md"].decode()
    assert "language: en" in card and "- own" in card and "- glue" in card and "trained on GLUE SST2" in card
    assert hub.commits[-1] == "Mine" and "user/worded" in hub.private
    answer = client.call("train", folder=tmp_path / "c", repo="user/worded", push={"revision": "nowhere"}, **settings)
    assert_a_sentence(answer.error, "PushError", "there is no such repository or branch (404)")
    answer = client.call("train", folder=tmp_path / "d", repo="user/worded", push={"daatset": "x"}, **settings)
    assert_a_sentence(answer.error, "SettingsError: the model card has no place for daatset")


# ---- Faults ----


def test_a_hub_that_fails_while_training_costs_a_warning_and_the_next_save_pushes(hub, client, tmp_path):
    fault = ["POST", "/commit/", 500, 10**6]
    hub.faults.append(fault)
    answer = client.done("train", folder=tmp_path, repo="user/down", max_steps=4, save_steps=2)
    lines = [line for line in answer.log if "push" in line]
    assert len(lines) == 2
    assert_a_sentence(lines[0], "the push to 'user/down' failed: the Hub has an error of its own (500)",
                      "training goes on, and the next save pushes again")  # fmt: skip
    assert set(hub.files["user/down"]) == {".gitattributes"}
    fault[3] = 3  # the client does not try a commit again, so we do
    answer = client.done("train", folder=tmp_path / "2", repo="user/down", max_steps=2, save_steps=2)
    assert not answer.log and "last-checkpoint/state.json" in hub.files["user/down"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, "refuses the token"), (403, "may not do that (403)"), (404, "no such repository"), (409, "(409)"),
        (412, "(412)"), (413, "answers 413"), (503, "(503)"), ("cut", "can't be reached"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/api/models/[^/]*/faults$|/api/models/user/faults/revision", "/commit/"])
def test_no_answer_of_the_hub_ends_a_training(hub, client, tmp_path, fault, words, path):
    client.done("make", folder=tmp_path, repo="user/faults")
    hub.faults.append(["POST" if path == "/commit/" else "GET", path, fault, 10**6])
    answer = client.done("train", folder=tmp_path, repo="user/faults", max_steps=1, save_steps=1)
    assert answer.result == 1
    (line,) = answer.log
    assert_a_sentence(line, "the push to 'user/faults' failed", words, "the next save pushes again")


def test_a_checkpoint_that_can_not_travel_costs_a_warning(hub, client, tmp_path):
    answer = client.done("train", folder=tmp_path, repo="user/strange", max_steps=1, save_steps=1, strange=True)
    assert answer.result == 1
    assert_a_sentence(answer.log[0], "checkpoint-1 can't be pushed: scheduler.pt can't travel without a pickle",
                      "the next save pushes again")  # fmt: skip


def test_the_push_at_the_end_says_what_failed_and_how_to_repeat_it(hub, client, tmp_path):
    client.done("make", folder=tmp_path, repo="user/end")
    hub.faults.append(["POST", "/commit/", 403, 1])
    answer = client.call("train", folder=tmp_path, repo="user/end", max_steps=1, hub_strategy="end", push=True)
    assert_a_sentence(answer.error, "PushError: the push to 'user/end' failed: the token may not do that (403)",
                      f"the run is whole in '{tmp_path}', and trainer.push_to_hub() tries again")  # fmt: skip
    assert (tmp_path / "README.md").is_file() and (tmp_path / "model.safetensors").is_file()
    client.done("push_folder", folder=tmp_path, repo="user/end")
    assert hub.files["user/end"]["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


def test_the_command_line_ends_with_the_command_that_pushes_again(hub, client, tmp_path):
    folder = tmp_path / "my run"
    argv = [*SMALL, "--max_steps", "2", "--save_strategy", "no", "--output_dir", str(folder), "--push_to_hub", "true",
            "--hub_model_id", "user/script", "--disable_tqdm", "true"]  # fmt: skip
    hub.faults.append(["POST", "/commit/", 500, 10**6])
    answer = client.call("run_famus", argv=argv)
    assert answer.error == "SystemExit: 2"
    line = answer.printed.strip().splitlines()[-1]
    assert_a_sentence(line, "run_famus.py: error: the push to 'user/script' failed", "(500)",
                      f"python scripts/release.py --run '{folder}' --hub_model_id user/script")  # fmt: skip
    assert "posterior targets, top 4 layers" in answer.printed and "Traceback" not in answer.printed
    for name in ("all_results.json", "noise.parquet", "README.md", "model.safetensors", "trainer_state.json"):
        assert (folder / name).is_file(), name
    hub.faults.clear()
    again = shlex.split(line.partition("push it with: python ")[2])
    again = client.done("release", argv=[*again[1:], "--use_cpu", "--release_dir", str(tmp_path / "releases")])
    assert "pushed to" in again.printed
    assert hub.files["user/script"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()


REFUSED = {
    "a wrong token": ("POST", "/repos/create", 401, "the Hub refuses the token, or wants one (401): log in with"),
    "no rights": ("POST", "/repos/create", 403, "the token may not do that (403)"),
    "no rights in a repository that is there": ("GET", "/auth-check/write", 403, "the token may not do that (403)"),
    "no such user": ("POST", "/repos/create", 404, "there is no such repository or branch (404)"),
    "an error of the Hub": ("POST", "/repos/create", 500, "the Hub has an error of its own (500): try again later"),
    "a cut": ("POST", "/repos/create", "cut", "the Hub can't be reached"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_repository_that_can_not_be_pushed_to_is_found_before_training(hub, client, tmp_path, kind):
    method, path, fault, words = REFUSED[kind]
    hub.files["user/there"] = {}
    hub.faults.append([method, path, fault, 10**6])
    repo = "user/there" if method == "GET" else "user/absent"
    answer = client.call("make", folder=tmp_path, repo=repo)
    assert_a_sentence(answer.error, f"HubError: '{repo}' on the Hub can't be pushed to", words)


def test_a_branch_and_a_name_that_are_none_are_found_before_training(hub, client, tmp_path):
    answer = client.call("make", folder=tmp_path, repo="user/branch", hub_revision="nowhere")
    assert_a_sentence(answer.error, "'user/branch' at 'nowhere' on the Hub can't be pushed to", "repository or branch")
    answer = client.call("make", folder=tmp_path, repo="user/na me")
    assert_a_sentence(answer.error, "'user/na me' on the Hub can't be pushed to")
    argv = [*SMALL, "--output_dir", str(tmp_path), "--push_to_hub", "true", "--hub_model_id", "user/branch",
            "--hub_token", "hf_unknown"]  # fmt: skip
    answer = client.call("run_famus", argv=argv)
    assert answer.error == "SystemExit: 2"
    assert_a_sentence(answer.printed.strip().splitlines()[-1], "run_famus.py: error: 'user/branch'", "(401)")


def test_a_repository_that_is_there_and_passing_faults_are_no_obstacle(hub, client, tmp_path):
    hub.files["user/old"] = {"LICENSE": b"mine"}
    hub.faults += [["POST", "/repos/create", 503, 2], ["GET", "/auth-check", "cut", 1]]
    client.done("make", folder=tmp_path, repo="user/old")
    assert not any(fault[3] for fault in hub.faults)


def run_folder(folder, size, **more):
    """Files of a run, large ones among them, to be pushed without training."""
    for name, content in {"config.json": "{}", "README.md": "---\nlicense: mit\n---\n", **more}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (folder / name).write_bytes(name.encode() + bytes(size))
    return folder


def test_an_interrupted_push_leaves_the_repository_as_it_was_and_can_be_repeated(hub, client, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "large_names", re.compile(r"models model-.*\.safetensors"))
    folder = run_folder(tmp_path, 10**6)
    client.done("push_folder", folder=folder, repo="user/cut")
    before, commits = dict(hub.files["user/cut"]), len(hub.commits)
    (folder / "config.json").write_text('{"new": 1}')
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (folder / name).write_bytes(name.encode() + bytes(2 * 10**6))
    hub.faults.append(["POST", "/commit/", "cut", 10**6])
    answer = client.call("push_folder", folder=folder, repo="user/cut")
    assert_a_sentence(answer.error, "PushError: the push to 'user/cut' failed: the Hub can't be reached")
    assert hub.files["user/cut"] == before and len(hub.commits) == commits
    hub.faults.clear()
    hub.requests.clear()
    client.done("push_folder", folder=folder, repo="user/cut")
    assert hub.files["user/cut"]["config.json"] == b'{"new": 1}' and len(hub.commits) == commits + 1
    assert not [line for line in hub.requests if line.startswith("PUT")]  # what had arrived is not sent again


def test_a_connection_that_is_cut_within_a_large_file_is_made_anew(hub, client, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "large_names", re.compile(r"models model-.*\.safetensors"))
    folder = run_folder(tmp_path, 3 * 10**6)
    fault = ["PUT", "/lfs/", "cut", 1]
    hub.faults.append(fault)
    client.done("push_folder", folder=folder, repo="user/large")
    assert fault[3] == 0
    name = "model-00001-of-00002.safetensors"
    assert hub.files["user/large"][name] == (folder / name).read_bytes()


def test_a_commit_whose_answer_is_lost_is_made_once(hub, client, tmp_path):
    commits = len(hub.commits)
    hub.faults.append(["POST", "/commit/", "lost", 1])
    client.done("push_folder", folder=run_folder(tmp_path, 10), repo="user/lost")
    assert len(hub.commits) == commits + 1 and "config.json" in hub.files["user/lost"]


def test_a_commit_of_somebody_else_meanwhile_leads_to_another_try(hub, client, tmp_path):
    def meanwhile():
        hub.files["user/both"]["meta_net/config.json"] = b"of another run"
        hub.commits.append("another")

    hub.faults.append(["POST", "/preupload/", meanwhile, 1])
    client.done("push_folder", folder=run_folder(tmp_path, 10), repo="user/both")
    assert "config.json" in hub.files["user/both"] and "meta_net/config.json" not in hub.files["user/both"]


# ---- What an earlier run has left ----


def test_nothing_of_an_earlier_run_stays_and_everything_else_does(hub, client, tmp_path):
    own = {".gitattributes", "LICENSE", "notes/ideas.json", "handler.py", "bench/all_results.json", "demo.png",
           "figures/mine/photo.png", "tokenizer_notes/ideas.json", "model_a/notes.json", "model_c/config.json",
           "model_a/meta_net/more/x.json"}  # fmt: skip
    stale = {
        "meta_net/config.json", "meta_net/layer_sampler.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors", "model.safetensors.index.json", "last-checkpoint/state.json",
        "last-checkpoint/meta_net/config.json", "noise.parquet", "label_report.parquet", "figures/weights.png",
        "preprocessor_config.json", "all_results.json", "two_networks.py", "preact_resnet.py", "model_a/config.json",
        "model_a/preact_resnet.py", "model_b/model-00001-of-00002.safetensors", "model_b/preprocessor_config.json",
        "model_b/meta_net/config.json", "model_a/meta_net/layer_sampler.safetensors", "model_a/meta_net/optimizer.pt",
        "last-checkpoint/model_a/meta_net/config.json",
    }  # fmt: skip
    hub.files["user/twice"] = {name: b"old" for name in own | stale}
    folder = run_folder(tmp_path, 10, **{"figures/curve.png": "new"})
    client.done("push_folder", folder=folder, repo="user/twice")
    new = {"config.json", "README.md", "figures/curve.png", "model-00001-of-00002.safetensors",
           "model-00002-of-00002.safetensors"}  # fmt: skip
    assert set(hub.files["user/twice"]) == own | new
    assert all(hub.files["user/twice"][name] == b"old" for name in own)


def test_a_run_of_two_networks_and_one_of_one_replace_each_other(hub, client, tmp_path):
    two, one = tmp_path / "two", run_folder(tmp_path / "one", 10)
    save_run(two, trained_ensemble())
    for _ in range(2):
        client.done("push_folder", folder=two, repo="user/two-one")
        assert set(hub.files["user/two-one"]) == {".gitattributes", *PUSHED}
        parts = {place: client.done("load", repo="user/two-one", subfolder=place).result for place in ("", "model_b")}
        assert parts[""] == ["TwoNetworksForImageClassification", "NoneType", "NoneType", "ViTImageProcessorPil"]
        assert parts["model_b"][:2] == ["PreActResNetForImageClassification", "MLC"]
        client.done("push_folder", folder=one, repo="user/two-one")
        assert set(hub.files["user/two-one"]) == {".gitattributes", *files_to_push(one)}


def test_the_last_checkpoint_of_another_run_goes_and_ones_own_stays(hub, client, tmp_path):
    hub.files["user/last"] = {"last-checkpoint/state.json": b"old", "last-checkpoint/other.json": b"old"}
    client.done("train", folder=tmp_path, repo="user/last", max_steps=3, push=True)
    pushed = hub.files["user/last"]
    assert "last-checkpoint/other.json" not in pushed and len(pushed["last-checkpoint/state.json"]) > 3
    client.done("train", folder=tmp_path / "2", repo="user/last", max_steps=1, push="later", hub_strategy="end")
    assert not [name for name in hub.files["user/last"] if name.startswith("last-checkpoint/")]


def test_figures_and_the_label_report_are_pushed(tmp_path):
    pushed = {"config.json", "figures/weights.png", "label_report.parquet", "noise.parquet"}
    for name in (*pushed, "figures/data.json", "other.parquet", "figures/more/weights.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert set(files_to_push(tmp_path)) == pushed


# ---- Tokens and private repositories ----


def test_no_token_is_in_any_file_or_line(hub, tmp_path):
    argument, variable = "hf_secretArgument42", "hf_secretVariable43"
    hub.tokens |= {argument: "write", variable: "write"}
    folder = tmp_path / "run"
    argv = [*SMALL, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(folder),
            "--push_to_hub", "true", "--hub_model_id", "user/secret", "--hub_strategy", "checkpoint", "--log_level",
            "debug", "--hub_token", argument]  # fmt: skip
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "HF_TOKEN": variable, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "run_famus.py"), *argv]
    result = clean_process.run(command, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files) and "user/secret" in hub.files
    contents = {**{str(path): path.read_bytes() for path in files}, **hub.files["user/secret"],
                "stdout": result.stdout.encode(), "stderr": result.stderr.encode()}  # fmt: skip
    assert not [name for name, content in contents.items() if b"hf_secret" in content]


def test_the_arguments_keep_the_token_that_their_file_does_not_have(tmp_path):
    trainer = make_trainer(tmp_path, hub_token="hf_secret")
    trainer.save_model()
    assert trainer.args.hub_token == "hf_secret"
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token is None


def test_a_private_repository_is_private_and_opens_with_a_token_alone(hub, client, tmp_path):
    client.done("train", folder=tmp_path, repo="user/hidden", max_steps=1, push=True, hub_private_repo=True)
    assert "user/hidden" in hub.private
    hub.tokens["hf_reader"] = "read"
    nobody = {"HF_TOKEN": "hf_nobody"}
    answer = client.call("load", repo="user/hidden", environment=nobody)
    assert_a_sentence(answer.error, "HubError: 'user/hidden' is no folder, and can't be loaded from the Hub", "(401)",
                      "`hf auth login`, set HF_TOKEN")  # fmt: skip
    answer = client.done("load", repo="user/hidden", token="hf_reader", environment=nobody)
    assert answer.result[1:3] == ["MWNet", "LearnedSampler"]


@pytest.mark.parametrize(
    ("repo", "fault", "environment", "words"),
    [
        ("user/nowhere", None, {}, "no such repository or branch (404)"),
        ("user/nowhere", 500, {}, "the Hub has an error of its own (500)"),
        ("user/nowhere", "cut", {}, "the Hub can't be reached"),
        ("no/such/folder", None, {}, "'no/such/folder' is no folder"),
    ],
)
def test_what_can_not_be_loaded_is_said_in_one_sentence(hub, client, repo, fault, environment, words):
    hub.faults.append(["GET", "/api/models/user/nowhere", fault, 10**6 if fault else 0])
    answer = client.call("load", repo=repo, environment=environment)
    assert_a_sentence(answer.error, f"HubError: '{repo}' is no folder, and can't be loaded from the Hub", words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE forbids it"),
        (json.JSONDecodeError("x", "", 0), "can't be read as JSON"),
        (ValueError("Invalid metadata in README.md.\n- license"), "Invalid metadata in README.md"),
    ],
)
def test_errors_that_are_no_answers_are_told_too(error, words):
    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = error
    assert words in hub_reason(error) and (isinstance(error, ValueError) or words in hub_reason(wrapped))


def test_loading_does_not_fetch_the_last_checkpoint(hub, client, tmp_path):
    client.done("train", folder=tmp_path, repo="user/light", max_steps=1, save_steps=1)
    hub.requests.clear()
    client.done("load", repo="user/light")
    fetched = [line for line in hub.requests if "resolve" in line]
    assert fetched and not [line for line in fetched if "last-checkpoint" in line]


def test_settings_that_would_push_pickles_or_nothing_to_resume_from_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"choose 'every_save', or 'checkpoint'"):
        make_trainer(tmp_path, hub_strategy="all_checkpoints")
    with pytest.raises(ValueError, match="leave save_only_model out"):
        make_trainer(tmp_path, hub_strategy="checkpoint", save_only_model=True)
