"""``python -m recipes.nano --config configs/nano.yaml --out runs/nano``."""

from __future__ import annotations

from .training import main

if __name__ == "__main__":
    main()
