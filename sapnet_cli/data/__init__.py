"""Pairs of pictures to learn from."""
