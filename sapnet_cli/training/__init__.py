"""The loop that turns pairs into weights."""
