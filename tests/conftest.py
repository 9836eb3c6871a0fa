import gc
import logging

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a second thread only costs, and pytest-xdist fills the cores


@pytest.fixture(scope="session")
def compared_runs(tmp_path_factory):
    """Folder of `own`, a run on digits with every diagnostic, and of `own-plain` and `own-mw-net` beside it."""
    from famus_hf.cli import run as run_famus

    folder = tmp_path_factory.mktemp("compared")
    run_famus.main([
        "--dataset_name", "digits", "--noise", "0.4", "--max_steps", "8", "--eval_steps", "2", "--logging_steps", "2",
        "--eval_strategy", "steps", "--logging_strategy", "steps", "--max_train_samples", "400", "--compare",
        "--per_device_train_batch_size", "40", "--max_eval_samples", "60", "--use_cpu", "--save_strategy", "no",
        "--output_dir", str(folder / "own"), "--disable_tqdm", "true", "--report_to", "none", "--log_stage_times", "2",
        "--log_meta_gradient", "4", "--log_weights", "4", "--log_layers", "2", "--meta_gradient_draws", "2",
        "--hub_token", "hf_abc", "--meta_learner", "mw-net",
    ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def uninterrupted_run(tmp_path_factory):
    """A trainer after six steps with a checkpoint after each, that nothing happened to."""
    from tests.helpers.checkpointed_runs import run

    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="session")
def hub():
    """A Hub on the loopback interface; tests choose names of repositories that no other test takes."""
    from tests.helpers.loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    """A process that talks to it."""
    from tests.helpers.hub_client import HubClient

    with HubClient(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture
def in_this_process(monkeypatch):
    """Has the runs of a comparison or a table train in this process."""
    from tests.helpers.jobs import InThisProcess

    monkeypatch.setattr("famus_hf.cli.jobs.ProcessPoolExecutor", InThisProcess)


@pytest.fixture(autouse=True)
def same_log_levels():
    """A trainer's log_level is of the whole process, and of no other test."""
    levels = {name: logging.getLogger(name).level for name in ("transformers", "famus_hf")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def caught(caplog):
    """What is logged."""
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield caplog
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).removeHandler(caplog.handler)


def pytest_collection_finish(session):
    """What has been imported lives until the end: collections of garbage, of which tests ask for many, pass over it."""
    gc.collect()
    gc.freeze()
