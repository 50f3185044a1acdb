"""Methods compared: one training a cell, of equal budgets of network calls, each measured alike."""
