"""Recipe of a tiny Emu that draws small Scenes from captions such as "a red car on grass" (docs/emu.md)."""
