"""Vocabularies of tokenizers: which tokens a corpus uses, what the algorithm needs beside them."""
