"""The command line: its flags, and what a run prints and leaves."""
