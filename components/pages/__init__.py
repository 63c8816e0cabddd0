"""ECG pages as a function: page = draw(signal_uv, sampling_rate_hz, spec(seed, style, width, height)).

layout: where leads go. spec: what a page looks like. draw, raster: ink on paper. artefacts: scanner and
camera. codec: PNG and back.
"""
