"""The report of an evaluation: tables, pictures and one page with all of it."""
