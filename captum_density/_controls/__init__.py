"""Controls: maps that know nothing of a model's reasons, and how a method stands beside them."""
