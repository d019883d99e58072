"""Where layers are kept: volumes, records, meshes and skeletons, on disk or in a cloud."""
