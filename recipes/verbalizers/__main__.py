"""``python -m recipes.verbalizers --config configs/verbalizers.yaml --out runs/verbalizers``."""

from __future__ import annotations

from .training import main

if __name__ == "__main__":
    main()
