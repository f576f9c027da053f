"""Surveys of photographs: measured in batches, printed, and sorted into folders."""
