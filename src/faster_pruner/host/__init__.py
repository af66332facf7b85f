"""The machine at hand: devices, memory, folders."""
