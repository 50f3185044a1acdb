"""One thread for every test: the machines are small and shared, and sums keep their order."""

import torch

torch.set_num_threads(1)
