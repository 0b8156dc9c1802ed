"""What users hold: stores, workflows, drafts. Thin: nothing here has a state of its own that the log does not have."""
