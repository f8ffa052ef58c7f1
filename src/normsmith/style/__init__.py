"""Pictures in the style of others, from files to a file: reading and writing them, and training what `models.StyleTransfer` needs."""
