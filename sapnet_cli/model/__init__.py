"""The network and its files of weights."""
