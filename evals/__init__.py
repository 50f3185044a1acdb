"""Commands that measure a diffusers folder or an image folder."""
