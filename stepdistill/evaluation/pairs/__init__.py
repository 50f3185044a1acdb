"""Two sets of images, models or statistics side by side."""
