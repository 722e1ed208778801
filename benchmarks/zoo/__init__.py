"""The sweep over the architectures of torchvision, timm and transformers: `python -m benchmarks.zoo --help`."""
