"""Pure functions on images: blur them, measure where they are blurred, mask those parts."""
