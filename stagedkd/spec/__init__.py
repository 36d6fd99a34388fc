"""The language that users write: YAML with positions, validated once into a frozen `Spec`."""
