"""Files of a run: whole or not there when written, hostile until proven otherwise when read."""
