"""How far a picture is from its ground truth."""
