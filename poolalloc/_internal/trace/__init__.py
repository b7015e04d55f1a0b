"""Traces: what they are (`format`), their files (`files`), recordings in progress (`log`), and their steps (`steps`).

Both the runtime, which records, and poolalloc.analysis, which reads, rest on them. The public door is
poolalloc.analysis.trace.
"""
