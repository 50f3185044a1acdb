"""One thread for every test and its children: the machines are small and shared, and sums keep
their order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in children

import torch

torch.set_num_threads(1)
