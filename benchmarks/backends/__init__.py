"""Stores on servers, each beside its bare driver on the same server in the same run."""
