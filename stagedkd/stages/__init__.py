"""One stage: taken from the store, or made under its lease by the function of its kind."""
