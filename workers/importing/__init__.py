"""The import child: reads a model folder from anywhere and writes the canonical one that workers serve."""
