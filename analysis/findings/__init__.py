"""The paper's findings, each tested on the study at hand."""
