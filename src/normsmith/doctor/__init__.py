"""What is wrong with a model's normalization: observe, find, explain, name the cure."""
