"""What the package costs, measured: python -m stn_cifar bench. Part of the repository, not of the installed package.

run.py does the asked benchmarks one after another and keeps the record; each of loops, measures, growth, families and
antialias is a function `run(settings) -> dict` with all raw values and the tables for README. Whatever is compared is
measured in turns (one round of each, then the next round), so that a busy moment of the machine hits all alike.
"""
