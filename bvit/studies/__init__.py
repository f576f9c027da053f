"""What makes one figure or table of the documentation, each a command."""
