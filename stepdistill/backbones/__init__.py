"""Adapters that turn a native network into a Denoiser, one family a file."""
