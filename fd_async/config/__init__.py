"""Configuration: frozen Structs (`schema`), TOML + overlays + --set (`load`), cross-field rules (`checks`)."""
