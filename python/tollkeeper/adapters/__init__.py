"""Adapters: one module per agent runtime, each a mapping of that runtime's hooks onto a gate.

A module imports its runtime when it is imported, and nothing here imports a module: `from tollkeeper.adapters import
maf`. Each has an extra of the same name, says which versions of its runtime it was tested with, and passes the same
contract suite. `tollkeeper hosts` prints what each can and cannot guarantee.

No adapter decides anything: what a host's event comes to is asked of the gate.
"""
