"""Other people's frameworks, each in a room of its own that imports it; none of them is needed."""
