"""What `python -m bvit.benchmark` measures: a module for each suite, and how they are timed."""
