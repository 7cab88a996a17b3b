"""What models share that read images and texts in one sequence: Emu and Flamingo."""
