"""Recipe of the small verbalizers: Mask2Former, PSGTR and OWLv2 on synthetic Scenes."""
