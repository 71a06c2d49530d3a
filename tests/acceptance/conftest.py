# The speeds are measured by hand.
collect_ignore = ["speed.py"]
