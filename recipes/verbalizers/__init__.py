"""The small verbalizers from nothing: Mask2Former, PSGTR and OWLv2 on synthetic Scenes."""
