"""The command `python -m captum_density`: its arguments, loading models and data, and the main job on the digits."""
