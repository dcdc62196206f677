"""Versioned datasets in PostgreSQL: frozen, in one order, and with the test split out of reach.

This package is the one home of psycopg and Alembic. Nothing here imports them at load, so that an install without the
extra ``postgres`` can import everything else.
"""
