"""How the bundled weights were made: moai-nano, the small verbalizers, moai-smol, the documentation's gallery.

Run from the repository's top, for example `python -m recipes.nano --config configs/nano.yaml --out runs/nano`. Recipes
may import everything; nothing imports them, and they are not installed.
"""
