"""One module per host; see `driver.py`."""
