"""One file for each resource of the REST API; routes.py lists their operations."""
