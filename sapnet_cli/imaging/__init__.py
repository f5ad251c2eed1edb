"""Files to pictures and back, with all that was in them."""
