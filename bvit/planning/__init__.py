"""What `bvit.plan` is made of: the devices there are to rent, and what a compiled program needs."""
