"""timm's and Transformers' models: building and reading them, their preprocessing, the catalogue of architectures."""
