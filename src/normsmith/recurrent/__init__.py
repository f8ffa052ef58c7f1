"""Recurrent layers with a norm for each product of a gate: LSTM and GRU, their cells, and batch norm with statistics for each step."""
