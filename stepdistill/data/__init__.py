"""Data: what ``fit`` reads. Indices are a function of (seed, iteration), so nothing is saved."""

from .loading import Data as Data
from .loading import TensorData as TensorData
from .loading import micro_batches as micro_batches
