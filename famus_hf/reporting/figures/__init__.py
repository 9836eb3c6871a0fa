"""Pictures: of a label report, and of runs from what they have logged. Import from the modules."""
