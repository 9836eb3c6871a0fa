"""FaMUSTrainer, a Trainer of transformers whose step has the three stages of the paper."""

from famus_hf.trainer.trainer import FaMUSTrainer

__all__ = ["FaMUSTrainer"]
