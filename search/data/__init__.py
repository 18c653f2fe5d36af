"""From any source of images to one store of pixels and four roles."""
