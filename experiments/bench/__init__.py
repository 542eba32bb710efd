"""What training costs, measured: python -m stn_cifar bench.

run does the asked benchmarks one after another and keeps the record; loops and families are each a
function `run(settings) -> dict` with all raw values; speed makes results/speed.md of the records.
Whatever is compared is measured in turns (one round of each, then the next round), so that a busy
moment of the machine hits all alike.
"""
