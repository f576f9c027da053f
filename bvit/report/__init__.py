"""Runs compared: tables, figures and one page."""
