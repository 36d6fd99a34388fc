"""The losses: what each has, by family, and the section `losses` of a phase."""
