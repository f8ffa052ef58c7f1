"""What edits or steers whole models: the only code that does."""
