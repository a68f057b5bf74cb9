"""The HTTP client: `Ondol`, `AsyncOndol` and what they return. Import the public names from `ondol`."""
