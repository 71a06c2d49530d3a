"""What tables and pictures have in common."""
