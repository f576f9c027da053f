"""The training loop, its step, and what a run shows while it trains."""
