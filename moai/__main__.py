"""``python -m moai`` is the command ``moai``."""

from moai.cli import app

app(prog_name="moai")
