"""Pure numerics: arrays in, arrays out, one module per algorithm."""
