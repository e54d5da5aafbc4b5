"""Text in, checkpoint out: ``python -m training --data my.txt --out runs/mine``."""
