"""The happy path, one idea a test: read these as documentation."""
