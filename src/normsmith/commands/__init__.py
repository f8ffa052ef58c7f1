"""The commands, thin: a few lines each over the library; torch is imported by those that need it, when they run."""
