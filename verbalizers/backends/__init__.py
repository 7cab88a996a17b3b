"""The verbalizers themselves, a file per kind and library; each library is imported when it first runs."""
