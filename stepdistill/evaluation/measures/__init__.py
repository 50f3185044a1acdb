"""What a metric looks through, and what it makes of it."""
