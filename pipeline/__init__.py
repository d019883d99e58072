"""From raw serial-section electron microscopy to neurons and the synapses between them."""
