"""The demo: a small corpus with known answers, local servers that stand in for the internet, and
the run over both.
"""
