"""The report of an evaluation: tables, pictures, and a page that shows all of them."""
