"""Tornado: connections, requests, responses, status codes."""
