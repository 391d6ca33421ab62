"""Which tables and figures stand in the pages: `python -m experiments.tables` renders them."""
