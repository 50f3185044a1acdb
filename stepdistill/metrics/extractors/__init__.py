"""Networks that a distance is measured on."""
