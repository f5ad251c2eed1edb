"""Scores of weights on pairs."""
