"""The bundled worlds: teachers, classifiers and references, as data."""
