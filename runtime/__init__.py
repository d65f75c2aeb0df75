"""Video in, video out: prompts, schedule, solvers, windows, devices and files."""
