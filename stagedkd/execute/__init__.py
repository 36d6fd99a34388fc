"""Does what the plan says: walks it and runs one function per kind of work."""
