"""Pictures of trained models: labelled sheets of images, as PNG files and in TensorBoard."""
