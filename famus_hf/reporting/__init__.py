"""What a run tells: label report, model card, diagnostics, pictures."""
