"""20 000 steps on digits, stopped and resumed every 4000: memory and open files stay as they are. Minutes: -m slow."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.metrics import compute_accuracy

STEPS, PART, EVERY = 20_000, 4000, 250
WARM_UP = 4000  # steps in which allocators and caches take what they need


class Resident(TrainerCallback):
    """Bytes of the process and its open files, now and then."""

    def __init__(self):
        self.steps, self.bytes, self.files = [], [], []

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step % EVERY == EVERY // 2:  # between evaluations and checkpoints
            gc.collect()
            self.steps.append(state.global_step)
            self.bytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            self.files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_steps_leave_memory_and_open_files_as_they_are(tmp_path, capsys):
    data = load_noisy_dataset("digits", noise=0.4, seed=0)
    resident = Resident()
    for end in range(PART, STEPS + 1, PART):
        args = FaMUSTrainingArguments(
            str(tmp_path), max_steps=STEPS, per_device_train_batch_size=16, eval_strategy="steps", eval_steps=1000,
            save_steps=1000, save_total_limit=2, logging_steps=500, report_to="none", use_cpu=True, disable_tqdm=True,
            meta_learner="mw-net",
        )  # fmt: skip
        trainer = FaMUSTrainer(
            build_backbone("tiny", data["train"].features["label"].names), args, train_dataset=data["train"],
            meta_dataset=data["meta"], eval_dataset=data["test"], compute_metrics=compute_accuracy,
            callbacks=[resident, StopAt(end)],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{end - PART}") if end > PART else None)
        assert trainer.state.global_step == end
    settled = np.array(resident.steps) > WARM_UP
    megabytes = np.array(resident.bytes) / 1e6
    slope = np.polyfit(np.array(resident.steps)[settled] / 1000, megabytes[settled], 1)[0]
    with capsys.disabled():
        print(
            f"\nmemory: {megabytes[0]:.0f} MB at first, {megabytes[settled][0]:.0f} MB after {WARM_UP} steps, "
            f"{megabytes[-1]:.0f} MB at the end, slope {slope:+.3f} MB in 1000 steps; "
            f"open files: {resident.files[0]} at first, {max(resident.files)} at most, {resident.files[-1]} at the end"
        )
    assert slope < 0.5, "a leak of a float for each example would be 16 × 4 bytes × 1000"
    assert max(resident.files[1:]) <= resident.files[0] + 2


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **keywords):
        control.should_training_stop = state.global_step >= self.step
