"""Running a user's model: its calls, its outputs at a batch, and what has to hold, and be put back, around them."""
