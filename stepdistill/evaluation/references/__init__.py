"""What is measured against: statistics of ours and of other programs, or images."""
