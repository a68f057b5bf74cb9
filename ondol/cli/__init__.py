"""The command line `ondol`, on top of the client; it starts processes as `python -m …` and loads `control` lazily."""
