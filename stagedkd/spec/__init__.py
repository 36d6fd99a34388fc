"""What the user writes: YAML with positions, validated once into a frozen `Spec`."""
