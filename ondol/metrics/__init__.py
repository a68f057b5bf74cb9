"""What Ondol counts and measures for Prometheus: every name with its sentence, and the server that shows them."""
