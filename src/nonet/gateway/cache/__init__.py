"""Answers kept for equal asks, and for asks that mean the same."""
