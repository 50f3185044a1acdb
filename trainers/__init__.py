"""Programs to launch, one a method: ``accelerate launch trainers/dmd2.py --help``."""
