"""The one way to run the network on pictures."""
