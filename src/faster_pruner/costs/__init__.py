"""What one unit of one sublayer costs: multiply-accumulates, parameters, bytes."""

from faster_pruner.costs.macs import encoder_macs, encoder_parameters, unit_macs, unit_parameters

__all__ = ["encoder_macs", "encoder_parameters", "unit_macs", "unit_parameters"]
