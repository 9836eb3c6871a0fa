import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))  # so that tests import what the scripts import

torch.set_num_threads(1)  # tiny tensors: a second thread only costs, and pytest-xdist fills the cores
