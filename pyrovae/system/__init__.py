"""The machine: device, memory, provenance, progress, atomic writes."""
