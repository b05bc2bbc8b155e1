"""mooring: an IoT hub that you run yourself and that speaks Azure IoT Hub's own protocols."""

__version__ = "0.1.0"
