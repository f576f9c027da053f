"""Trained models on the test set: conditions × policies, costs and statistics."""
