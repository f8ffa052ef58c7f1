"""The networks of the literature, each with a `norm=` argument that takes anything `ns.make` takes."""
