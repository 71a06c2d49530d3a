# The scripts are run by hand; only the harness has tests.
collect_ignore_glob = ["bench_*.py"]
