"""A whole run: the loop, its programs, and the devices it uses."""
