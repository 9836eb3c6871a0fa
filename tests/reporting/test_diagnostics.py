"""Diagnostics of a run: right numbers, no trace in what is trained, whole tables after a resume, nothing when off."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from famus_hf import L2R, MLC, FaMUSTrainer, MWNet
from famus_hf.core.layer_samplers import RandomLayers
from famus_hf.core.timer import Timer
from famus_hf.reporting.diagnostics import training_time
from famus_hf.reporting.diagnostics.callback import fits, is_due
from famus_hf.reporting.diagnostics.trackers import at_work, log_histogram
from famus_hf.reporting.diagnostics.weights import BINS, weight_rows
from famus_hf.storage.diagnostic_tables import SCHEMAS
from tests.helpers import brute_force
from tests.helpers.models import CLASSES
from tests.helpers.trainers import Examples, make_args, make_trainer, state_of
from tests.helpers.two_network_runs import learned
from tests.helpers.two_network_runs import make as make_two

ALL = {"log_stage_times": 2, "log_meta_gradient": 2, "log_weights": 2, "log_layers": 2, "meta_gradient_draws": 3}
STAGES = {
    "forward", "virtual backward", "sampler", "meta data", "validation forward", "validation backward", "derivative",
    "actual backward",
}  # fmt: skip


def tables(folder):
    """Name → rows, by column."""
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((folder / "diagnostics").iterdir())}


def measured_here(trainer, measure):
    """Calls `measure` with the arguments of `measure_meta_gradient`, at the same w and θ."""
    own = trainer.diagnostics.measure_meta_gradient

    def both(*arguments):
        measure(*arguments)
        own(*arguments)

    trainer.diagnostics.measure_meta_gradient = both


def test_meta_gradients_are_those_of_brute_force(tmp_path):
    keywords = {"meta_learner": MWNet().double(), "layer_sampler": RandomLayers(3)}
    trainer = make_trainer(
        tmp_path, dtype=torch.float64, keywords=keywords, max_steps=2, log_meta_gradient=2, meta_gradient_draws=4,
        learning_rate=0.1, meta_batch_size=5,
    )  # fmt: skip
    found = {}

    def by_hand(stages, training_pass, virtual):
        meta = stages.meta
        gates = meta.gates(virtual.gradient, training_pass.processes)
        on = [layer.name for layer, r in zip(meta.candidates, gates, strict=True) if r > 0]
        train = {**training_pass.inputs, "labels": training_pass.labels}
        batches = [trainer.redrawn_meta_batch("", draw) for draw in range(4)]
        assert len({batch["pixel_values"].sum().item() for batch in batches}) == 4
        alpha = trainer.optimizer.param_groups[0]["lr"]
        for kind, layers in (("sampled", on), ("exact", None)):
            gradients = [
                brute_force.mw_net_gradient(trainer.model, meta.meta_learner, train, batch, alpha, layers)
                for batch in batches
            ]
            found[kind] = torch.stack([torch.cat([g.flatten() for g in own.values()]) for own in gradients])
        found["on"] = on

    measured_here(trainer, by_hand)
    before = trainer.meta.times_on
    trainer.train()
    assert sum(trainer.meta.times_on) - sum(before) == 2 * 3
    rows = tables(tmp_path)["meta_gradient"]
    assert {row["step"] for row in rows} == {2} and len(rows) == 10
    means = {kind: found[kind].mean(0) for kind in ("sampled", "exact")}
    for kind, layers in (("sampled", 3), ("exact", len(trainer.meta.layers))):
        own = [row for row in rows if row["kind"] == kind]
        assert [row["draw"] for row in own] == [0, 1, 2, 3, None] and {row["layers"] for row in own} == {layers}
        for row, gradient in zip(own, [*found[kind], means[kind]], strict=True):
            assert row["norm"] == pytest.approx(gradient.norm().item(), rel=1e-8)
            assert row["total"] == pytest.approx(gradient.sum().item(), rel=1e-6)
        norms = found[kind].norm(dim=1)
        assert own[-1]["variance"] == pytest.approx(((found[kind] - means[kind]) ** 2).sum().item() / 3, rel=1e-8)
        assert own[-1]["norm_mean"] == pytest.approx(norms.mean().item(), rel=1e-8)
        assert own[-1]["norm_variance"] == pytest.approx(norms.var().item(), rel=1e-6)
    summary = next(row for row in rows if row["draw"] is None and row["kind"] == "sampled")
    bias = (means["sampled"] - means["exact"]).norm() / means["exact"].norm()
    assert summary["bias"] == pytest.approx(bias.item(), rel=1e-8)
    cosine = torch.nn.functional.cosine_similarity(means["sampled"], means["exact"], dim=0)
    assert summary["cosine"] == pytest.approx(cosine.item(), rel=1e-8)
    logged = next(entry for entry in trainer.state.log_history if "meta_gradient_bias" in entry)
    assert logged["meta_gradient_variance_exact"] == pytest.approx(rows[-1]["variance"])


def test_with_all_layers_on_the_sampled_gradient_is_the_exact_one(tmp_path):
    make_trainer(tmp_path, layer_sampler="all", max_steps=2, log_meta_gradient=1, meta_gradient_draws=2).train()
    summary = [row for row in tables(tmp_path)["meta_gradient"] if row["draw"] is None and row["kind"] == "sampled"]
    assert len(summary) == 2 and all(row["bias"] == 0 and row["cosine"] == pytest.approx(1) for row in summary)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("group norm", {"gradient_accumulation_steps": 2}),
        ("batch norm", {"derivative": "reverse", "meta_budget": 1.0, "candidate_layers": "3"}),
        ("called group norm", {"scale_example_gradients": True, "meta_interval": 2}),
    ],
    ids=["accumulation and dropout", "budget", "scaled gradients"],
)
def test_diagnostics_leave_no_trace_in_what_is_trained(tmp_path, kind, settings):
    """Weights, θ, η, optimizers, gates, losses and generators are bit for bit those of a run without them."""
    settings = {"max_steps": 4, "log_level": "error", **settings}
    without = make_trainer(tmp_path / "without", kind, **settings)
    looked_into = make_trainer(tmp_path / "with", kind, **settings, **ALL)
    if without.meta.budget is not None:  # what it costs is measured
        without.meta.budget.costs = looked_into.meta.budget.costs
        without.meta.budget.scale = looked_into.meta.budget.scale
    ends = []
    for trainer in (without, looked_into):
        torch.manual_seed(2)
        trainer.train()
        ends.append((torch.get_rng_state(), np.random.get_state()[1], trainer.meta.times_on, trainer.meta.steps))
    found, expected = state_of(looked_into), state_of(without)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(ends[0][0], ends[1][0]) and np.array_equal(ends[0][1], ends[1][1])
    assert ends[0][2:] == ends[1][2:]
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (without, looked_into)
    ]
    assert losses[0] == losses[1]
    assert set(tables(tmp_path / "with")) == set(SCHEMAS)
    assert not (tmp_path / "without" / "diagnostics").exists()


def test_off_there_is_no_callback_and_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(Timer, "now", lambda clock: pytest.fail("the clock was read"))
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    assert trainer.diagnostics not in trainer.callback_handler.callbacks
    assert not (tmp_path / "diagnostics").exists()


class StepCounter(TrainerCallback):
    step = 0

    def on_step_end(self, args, state, control, **keywords):
        StepCounter.step = state.global_step


def test_the_clock_is_read_in_measured_steps_alone(tmp_path, monkeypatch):
    StepCounter.step, read_in, now = 0, set(), Timer.now
    monkeypatch.setattr(Timer, "now", lambda clock: read_in.add(StepCounter.step + 1) or now(clock))
    trainer = make_trainer(tmp_path, layer_sampler="all", log_stage_times=3, gradient_accumulation_steps=2,
                           keywords={"callbacks": [StepCounter()]})  # fmt: skip
    trainer.train()
    assert read_in <= {3, 4, 6, 7}  # the end of step 3 comes after its counter
    rows = tables(tmp_path)["stage_times"]
    for step in (3, 6):
        seconds = {row["stage"]: row["seconds"] for row in rows if row["step"] == step}
        assert set(seconds) == STAGES | {"data", "optimizer", "step"} and min(seconds.values()) > 0
        assert sum(seconds[stage] for stage in (STAGES | {"optimizer"})) <= seconds["step"]
    assert {row["step"] for row in rows} == {3, 6}
    assert any("seconds_derivative" in entry for entry in trainer.state.log_history)


def test_with_a_budget_its_own_clock_goes_on(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=4, meta_budget=1.0, candidate_layers="3", log_stage_times=2, log_layers=2
    )
    clock = trainer.meta.clock
    trainer.train()
    assert trainer.meta.clock is clock and clock.times["forward"] == 4
    found = tables(tmp_path)
    assert {row["step"] for row in found["stage_times"]} == {2, 4}
    recorded = sum(row["seconds"] for row in found["stage_times"] if row["stage"] == "forward")
    assert recorded < clock.seconds["forward"]
    assert found["layers"][-1]["mean_cost"] == pytest.approx(trainer.mean_meta_cost)


def test_a_step_is_due_once_for_each_multiple_however_far_apart_meta_steps_are():
    assert [step for step in range(1, 31) if is_due(10, step)] == [10, 20, 30]
    assert not any(is_due(0, step) for step in range(1, 31))
    assert [step for step in range(1, 40, 3) if is_due(10, step, 3)] == [10, 22, 31]
    assert [step for step in range(1, 40, 10) if is_due(10, step, 10)] == [11, 21, 31]


def test_weights_of_clean_and_wrong_examples_classes_and_curve(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, log_weights=2)
    trainer.train()
    rows = tables(tmp_path)["weights"]
    assert {row["step"] for row in rows} == {2, 3}, "and at the end"
    last = [row for row in rows if row["step"] == 3]
    counts = {kind: sum(row["value"] for row in last if row["kind"] == kind) for kind in ("clean", "wrong")}
    assert counts == {"clean": 26, "wrong": 14}
    trainer.model.eval()
    batch = trainer.train_dataset.batch
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            trainer.model(batch["pixel_values"]).logits, batch["labels"], reduction="none"
        )
        weights = trainer.meta_learner(losses)
        for row in (row for row in last if row["kind"] == "class"):
            assert row["value"] == pytest.approx(weights[batch["labels"] == row["x"]].mean().item(), rel=1e-4)
        for row in (row for row in last if row["kind"] == "curve"):
            assert row["value"] == pytest.approx(trainer.meta_learner(torch.tensor([row["x"]])).item(), rel=1e-4)


def test_weight_rows_by_hand():
    losses = np.array([0.0, 1.0, 2.0, np.nan])
    rows = weight_rows(losses, np.array([0.0, 4.0, 4.0, 1.0]), np.array([0, 1, 1, 0]), None, lambda loss: 2 * loss)
    histogram = [(x, value) for kind, x, value in rows if kind == "unknown"]
    assert len(histogram) == BINS and histogram[1][0] == pytest.approx(0.1)
    assert histogram[0][1] == 1 and histogram[-1][1] == 2 and sum(value for _, value in histogram) == 3
    assert [(x, value) for kind, x, value in rows if kind == "class"] == [(0, 0), (1, 4)]
    assert all(value == 2 * x for kind, x, value in rows if kind == "curve")
    assert weight_rows(losses[3:], np.array([1.0]), np.array([0]), None, lambda loss: loss) == []


def test_layers_add_up_to_the_gates_of_the_run(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=5, log_layers=2, meta_interval=1)
    on_at = {}

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            on_at[state.global_step] = list(trainer.meta.times_on)

    trainer.add_callback(Note())
    trainer.train()
    rows = tables(tmp_path)["layers"]
    names = [layer.name for layer in trainer.meta.candidates]
    for step, before in ((2, [0] * len(names)), (4, on_at[2])):
        own = [row for row in rows if row["step"] == step]
        assert [row["layer"] for row in own] == names
        expected = [(now - then) / 2 for now, then in zip(on_at[step], before, strict=True)]
        assert [row["share_on"] for row in own] == expected
    assert {row["step"] for row in rows} == {2, 4}


def without_seconds(found):
    return {name: [{k: v for k, v in row.items() if k != "seconds"} for row in rows] for name, rows in found.items()}


def test_a_resumed_run_records_what_a_whole_one_does(tmp_path):
    """The checkpoint falls between two records of layers, and the files hold records of later steps."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.1, **ALL}
    make_trainer(tmp_path, **settings).train()
    whole = without_seconds(tables(tmp_path))
    again = make_trainer(tmp_path, **settings)
    torch.manual_seed(9)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert without_seconds(tables(tmp_path)) == whole
    assert {row["step"] for row in whole["layers"]} == {2, 4, 6}
    assert not (tmp_path / "diagnostics" / ".unfinished").exists()


@pytest.mark.parametrize(
    "counted", [None, {}, {"": 3}, {"": [1]}, {"": [6, 1]}, {"": [1, -1]}, {"": [1.0, 1]}], ids=str
)
def test_counts_of_a_checkpoint_that_can_not_be_are_left_out(counted):
    assert fits({"": [4, 2]}, {"": [5, 2]}) and not fits(counted, {"": [5, 2]})


def test_a_new_run_drops_the_records_of_an_earlier_one(tmp_path):
    for _ in range(2):
        make_trainer(tmp_path, max_steps=2, log_layers=1).train()
    assert [row["step"] for row in tables(tmp_path)["layers"] if row["layer"] == "stem"] == [1, 2]


def test_files_that_can_not_be_read_or_written_cost_a_warning(tmp_path, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "log_layers": 1}
    make_trainer(tmp_path, **settings).train()
    (tmp_path / "diagnostics" / "layers.parquet").write_bytes(b"no parquet")
    with caplog.at_level(logging.WARNING, "famus_hf"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "can't be read" in caplog.text
    assert {row["step"] for row in tables(tmp_path)["layers"]} == {3, 4}
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "diagnostics").write_text("in the way")
    with caplog.at_level(logging.WARNING, "famus_hf"):
        trainer = make_trainer(blocked, max_steps=2, log_layers=1)
        trainer.train()
    assert "could not be saved" in caplog.text and trainer.state.global_step == 2


def test_two_networks_are_recorded_apart_and_left_alone(tmp_path):
    """With their own clock, which measures every tenth step."""
    settings = {"max_steps": 12, "plain_warmup_epochs": 1}
    without = make_two(tmp_path / "without", **settings)
    looked_into = make_two(tmp_path / "with", **settings, **{**ALL, "log_stage_times": 10, "log_weights": 100})
    for trainer in (without, looked_into):
        trainer.train()
    found, expected = learned(looked_into), learned(without)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = tables(tmp_path / "with")
    for name, own in rows.items():
        assert {row["network"] for row in own} - {""} == {"model_a", "model_b"}, name
    assert {row["step"] for row in rows["stage_times"]} == {10}
    assert {row["stage"] for row in rows["stage_times"] if row["network"] == "model_b"} >= {*STAGES, "data"}
    assert {row["step"] for row in rows["meta_gradient"]} == {8, 10, 12}, "not in the warm-up of six steps"
    assert {row["step"] for row in rows["weights"]} == {12}
    assert looked_into.peers[0].clock.times == without.peers[0].clock.times
    assert looked_into.time_shares.keys() == without.time_shares.keys()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"log_weights": -1}, "log_weights=-1 must be a number of steps"),
        ({"log_layers": 5, "meta_learner": "none"}, "log_layers needs a meta_learner"),
        ({"log_meta_gradient": 5, "meta_gradient_draws": 1}, "meta_gradient_draws=1 must be at least 2"),
    ],
    ids=["negative", "plain training", "one draw"],
)
def test_settings_without_sense_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        make_args(tmp_path, **settings)


@pytest.mark.parametrize("learner", [L2R(), MLC(CLASSES)], ids=["l2r", "mlc"])
def test_weights_of_a_meta_learner_without_any_are_refused(tmp_path, learner):
    settings = {"meta_learning_rate": None, "meta_optim": None} if isinstance(learner, L2R) else {}
    with pytest.raises(ValueError, match=f"which {type(learner).__name__} does not: leave it out"):
        make_trainer(tmp_path, keywords={"meta_learner": learner}, log_weights=2, **settings)


def test_weights_of_a_stream_are_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Examples(40))

    with pytest.raises(ValueError, match="log_weights looks at the same training examples again"):
        FaMUSTrainer(
            make_trainer(tmp_path / "other").model,
            make_args(tmp_path, log_weights=2, max_steps=2),
            train_dataset=Stream(),
            meta_dataset=Examples(11, 1000, seed=8),
        )


def test_l2r_has_a_meta_gradient_too(tmp_path):
    make_trainer(tmp_path, meta_learner="l2r", max_steps=2, log_meta_gradient=2, meta_gradient_draws=2).train()
    rows = tables(tmp_path)["meta_gradient"]
    assert len(rows) == 6 and all(math.isfinite(row["norm"]) for row in rows)


def tracked(sent):
    """The four kinds of trackers' callbacks, of which one has not started, that append to `sent`."""
    tracker = SimpleNamespace(log=sent.append, Histogram=tuple, Image=lambda pixels: pixels)
    board, weights_and_biases, trackio, idle = (
        kind.__new__(kind) for kind in (TensorBoardCallback, WandbCallback, TrackioCallback, WandbCallback)
    )

    def note(*arguments, **keywords):
        sent.append((*arguments, keywords))

    board.tb_writer = SimpleNamespace(add_histogram=note, add_image=note)
    weights_and_biases._wandb, weights_and_biases._initialized = tracker, True
    trackio._trackio, trackio._initialized = tracker, True
    idle._initialized = False
    return [board, weights_and_biases, trackio, idle]


def test_histograms_go_to_the_trackers_that_are_at_work():
    callbacks = tracked(sent := [])
    log_histogram(at_work(callbacks), "weights", np.array([1.0, 2.0]), 7)
    assert sent[0][0] == "weights" and sent[0][2] == 7
    assert sent[1:] == [{"weights": (1.0, 2.0), "train/global_step": 7}] * 2
    log_histogram(at_work(callbacks), "weights", np.array([]), 7)
    assert len(sent) == 3


def test_heat_map_and_curves_go_to_the_trackers_that_are_at_work(tmp_path):
    sent = []
    trainer = make_trainer(tmp_path, max_steps=6, log_layers=2, log_weights=2)
    trainer.train()
    trainer.callback_handler.callbacks += tracked(sent)
    trainer.diagnostics.on_epoch_end(trainer.args, trainer.state, trainer.control)
    pictures = {entry[0]: entry for entry in sent if isinstance(entry, tuple) and "dataformats" in entry[-1]}
    assert set(pictures) == {"layers", "weight_curves"}
    for name, (_, pixels, step, keywords) in pictures.items():
        assert step == 6 and keywords == {"dataformats": "HWC"}
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 5
        others = [entry for entry in sent if isinstance(entry, dict) and name in entry]
        assert len(others) == 2 and all(np.array_equal(entry[name], pixels) for entry in others)


def test_training_time_is_that_of_training_and_goes_on_after_a_resume(tmp_path, monkeypatch):
    """An evaluation, a checkpoint and a look each take a second more on the clock, and a step a tenth."""
    clock = [0.0]
    monkeypatch.setattr(training_time.time, "perf_counter", lambda: clock[0])

    def slow(owner, name, seconds):
        own = getattr(owner, name)

        def slower(*arguments, **keywords):
            clock[0] += seconds
            return own(*arguments, **keywords)

        monkeypatch.setattr(owner, name, slower)

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
                "log_meta_gradient": 2, "log_weights": 2, "meta_gradient_draws": 2}  # fmt: skip
    for resumed in (False, True):
        trainer = make_trainer(tmp_path, **settings)
        slow(trainer, "training_step", 0.1)
        slow(trainer, "evaluation_loop", 1)
        slow(trainer, "_write_checkpoint", 1)
        slow(trainer.diagnostics, "redrawn_meta_batch", 1)
        slow(trainer.diagnostics, "_record_weights", 1)
        clock[0] = 5.0
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumed else None)
        found = {entry["step"]: entry["train_seconds"] for entry in trainer.state.log_history if "eval_loss" in entry}
        assert found == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
        clock[0] += 100
        assert trainer.training_time.seconds == pytest.approx(0.4), "after its end"


@pytest.mark.parametrize("earlier", [-1.0, math.nan, math.inf, "1", None], ids=str)
def test_a_time_of_a_checkpoint_that_can_not_be_is_left_out(earlier):
    time = training_time.TrainingTime()
    time.earlier = earlier
    time.on_train_begin(None, None, None)
    assert 0 <= time.seconds < 1


def test_tables_of_an_earlier_run_go_where_this_one_does_not_look(tmp_path):
    make_trainer(tmp_path, max_steps=2, log_layers=1, log_stage_times=1).train()
    make_trainer(tmp_path, max_steps=2, log_layers=1).train()
    assert set(tables(tmp_path)) == {"layers"}
    make_trainer(tmp_path, max_steps=2).train()
    assert tables(tmp_path) == {}
