"""Long tests that try to break the package: `make attack` runs them whole, `make test` a sample."""
