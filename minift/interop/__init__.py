"""Adapter files of other programs: PEFT's, AdapterHub's, llama.cpp's."""
