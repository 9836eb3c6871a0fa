import torch

torch.set_num_threads(1)  # tiny tensors: a second thread only costs, and pytest-xdist fills the cores
