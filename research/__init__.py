"""From finished runs to records, and from records to the tables, figures and documents of this repository."""
