"""What a measurement leaves: the number, and all that decides it."""
