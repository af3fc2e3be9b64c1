"""Numbered migrations and named queries for TimescaleDB and plain PostgreSQL."""
