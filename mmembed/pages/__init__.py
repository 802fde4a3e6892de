"""Pages: the report of a data set and the answers to a query, as HTML that needs no other file, network or script."""
