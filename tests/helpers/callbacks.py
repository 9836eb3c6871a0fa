"""Callbacks that trainers of tests are given."""

from transformers import TrainerCallback


class SaveAt(TrainerCallback):
    """Writes a checkpoint after these steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step in self.steps:
            control.should_save = True
