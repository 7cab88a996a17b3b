"""What all verbalizers share: structures, registry, sentences, scenes, drawings; numpy and Pillow only."""
