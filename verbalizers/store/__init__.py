"""Verbalizations on disk: data sets verbalized once, in several processes, and read many times."""
