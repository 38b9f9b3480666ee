"""What goes before the scripts of clients."""

# The client waits longer and longer between its tries, up to 23 seconds in all.
WITHOUT_WAITING = """
import time
time.sleep = lambda seconds: None
"""
