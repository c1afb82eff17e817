"""Declares options, and reads them from YAML files and flags.

Read `types` first (how an option is declared), then `parser` (how values are read). The options themselves stand in
`args_helper`, whose `parse_args` collects the problems of all steps and raises one `UserError` with all of them.
"""
