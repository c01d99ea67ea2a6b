"""Runs on the CPU what Triton compiled for a GPU: PTX, all threads of some blocks at once, in NumPy.

Triton's interpreter takes a kernel's Python at its word. This takes what ptxas is given: loads of 16 bytes where a
kernel promised that addresses divide, exchanges between threads, barriers. Each access has to lie in a tensor of the
launch and be aligned as a GPU wants it. What it can't see: threads that race, and how long it takes.
"""
