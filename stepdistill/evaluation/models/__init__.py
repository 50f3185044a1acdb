"""What is measured: a model of ours or of others, and what each sample is told."""
