"""How options are declared, and read from YAML files and flags."""
