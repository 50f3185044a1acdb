"""Numbers about samples: feature moments, Frechet distance, accuracy, diversity, latency."""
