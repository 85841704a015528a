"""Board descriptions, one TOML file each; `hwgen.boards` reads them."""
